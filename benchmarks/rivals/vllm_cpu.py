"""vLLM's CPU build as a child process, in an environment of its own: prompts in, token ids out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

_READY = "vllm-cpu answers: "  # before each line of JSON: vLLM logs to the same stream


class VllmProcess:
    """Generates greedily with vLLM in a process of the interpreter `python`."""

    def __init__(self, python: Path, model_dir: str, dtype: str):
        environment = {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # by default it leaves one core idle
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        }
        environment.pop("PYTHONPATH", None)
        command = [str(python), __file__, model_dir, dtype]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=model_dir
        )
        self._receive()

    def __enter__(self) -> VllmProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()  # closes its input, which ends it

    def __call__(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Return `new_tokens` token ids for each prompt."""
        assert self._process.stdin is not None
        print(json.dumps([prompts, new_tokens]), file=self._process.stdin, flush=True)
        return self._receive()

    def _receive(self) -> list[list[int]]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_READY):
                return json.loads(line.removeprefix(_READY))
        raise RuntimeError(f"vLLM ended with code {self._process.wait()}; what it wrote above says why")


def main() -> None:
    """Serve a model directory in a dtype: lines of JSON in, [prompts, new tokens], and lines of JSON out, token ids."""
    from vllm import LLM, SamplingParams

    llm = LLM(sys.argv[1], max_model_len=2048, dtype=sys.argv[2], enforce_eager=True, skip_tokenizer_init=True)
    print(_READY + "[]", flush=True)
    for line in sys.stdin:
        prompts, new_tokens = json.loads(line)
        sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=new_tokens, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        print(_READY + json.dumps([list(output.outputs[0].token_ids) for output in outputs]), flush=True)


if __name__ == "__main__":
    main()
