"""Hugging Face publishes a package named `kernels` too; neither may break the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(code: str, cwd: Path, path: Path) -> subprocess.CompletedProcess:
    env = {"PYTHONPATH": str(path), "PATH": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=200)


def test_transformers_builds_a_model_in_the_checkout():
    code = (
        "from transformers import DeepseekV3Config, DeepseekV3ForCausalLM as M\n"
        "import kernels; assert 'Triton kernel' in kernels.__doc__\n"
        "print(M(DeepseekV3Config(vocab_size=10, hidden_size=8, intermediate_size=8, moe_intermediate_size=8,\n"
        "  num_hidden_layers=1, num_attention_heads=1, n_routed_experts=8, kv_lora_rank=4, q_lora_rank=4,\n"
        "  qk_rope_head_dim=2, qk_nope_head_dim=2, v_head_dim=2)).num_parameters() > 0)"
    )
    done = run(code, ROOT, ROOT)
    assert done.stdout.strip() == "True", done.stderr


def test_a_foreign_kernels_package_is_named(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("")
    done = run(f"import sys; sys.path.append({str(ROOT)!r}); import reasoning", tmp_path, tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path}/kernels/__init__.py is not engram-ray's" in done.stderr
    assert "pip uninstall kernels" in done.stderr
