"""Load and save models in Hugging Face layout: config.json, *.safetensors, and an index when sharded."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reasoning.architectures.deepseek_v3.backbone import Transformer
from reasoning.architectures.deepseek_v3.config import ModelConfig
from reasoning.architectures.deepseek_v3.moe import MixtureOfExperts
from reasoning.config.json_file import read_config
from reasoning.model.cpu_weights import lay_out_for_cpu
from reasoning.model.rope import cos_sin_table

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SCALES = (".weight_scale_inv", ".scale")  # of DeepSeek-V3's 128x128 and V4.1's 32x32 fp8 blocks
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def load_model(
    model_dir: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Transformer:
    """Load a checkpoint of the DeepSeek-V3 architecture, with or without Engram layers.

    Block-quantised fp8 weights are dequantised. Memory tables are left where they are. The model gets a multi-token
    prediction layer if config.json counts one and the files hold it: transformers writes the count without the layer.

    Raises:
        ValueError: a file is missing or damaged, or a tensor is missing or has the wrong shape.
    """
    config = ModelConfig.from_dir(model_dir)
    if not _holds_layer(Path(model_dir), config.num_hidden_layers):
        config = dataclasses.replace(config, num_nextn_predict_layers=0)
    with torch.device("meta"):
        model = Transformer(config)
        if torch.device(device).type == "cpu":
            lay_out_for_cpu(model)
    model = model.to(dtype).to_empty(device=device)
    _restore_tables(model, config)
    fill(model, _tensors(Path(model_dir)))
    return model.eval()


def _restore_tables(model: Transformer, config: ModelConfig) -> None:
    """Recompute the buffers that no checkpoint holds, and keep what decides routing in fp32."""
    device = model.cos.device
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            module.gate.float()
    cos, sin = cos_sin_table(config.rope, config.qk_rope_head_dim, config.max_position_embeddings)
    model.cos, model.sin = cos.to(device), sin.to(device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


@torch.no_grad()
def fill(model: Transformer, tensors: Iterator[tuple[str, Tensor]] | Mapping[str, Tensor]) -> None:
    """Copy Hugging Face tensors into the model; ValueError names what is missing, unknown or misshapen."""
    places = _places(model)
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        if _elsewhere(name, model.config):
            continue
        place = places.pop(name, None)
        if place is None:
            raise ValueError(f"checkpoint: tensor {name} belongs to no layer of this config.json; do they match?")
        if place.shape != tensor.shape:
            wanted, got = tuple(place.shape), tuple(tensor.shape)
            raise ValueError(f"checkpoint: tensor {name} has shape {got}, config.json asks for {wanted}")
        place.copy_(tensor)
    if places:
        some = ", ".join(sorted(places)[:3])
        raise ValueError(f"checkpoint: {len(places)} tensors are missing, such as {some}; is a shard file absent?")


@dataclasses.dataclass(frozen=True)
class _Interleaved:
    """A checkpoint's tensor whose rows go by turns to several tensors of the model, [turns, rows, columns] each."""

    parts: tuple[Tensor, ...]

    @property
    def shape(self) -> torch.Size:
        turns, _, columns = self.parts[0].shape
        return torch.Size((turns * sum(part.shape[1] for part in self.parts), columns))

    def copy_(self, tensor: Tensor) -> None:
        turns = tensor.unflatten(0, (len(self.parts[0]), -1))
        for part, rows in zip(self.parts, turns.split([part.shape[1] for part in self.parts], dim=1), strict=True):
            part.copy_(rows)

    def joined(self) -> Tensor:
        return torch.cat(self.parts, dim=1).flatten(0, 1)


def _places(model: Transformer) -> dict[str, Tensor | _Interleaved]:
    """Map every Hugging Face tensor name to the storage it fills.

    Experts are slices of stacked tensors, and what expands latents to keys and values is a tensor of each.
    """
    places: dict[str, Tensor | _Interleaved] = {}
    state = {_in_layers(name, model.config): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if name.startswith("lm_head"):
            if not model.config.tie_word_embeddings:
                places[name] = tensor
        elif name.endswith("mlp.gate_up"):
            for expert, (gate, up) in enumerate(part.chunk(2) for part in tensor):
                base = f"model.{name[: -len('gate_up')]}experts.{expert}"
                places[f"{base}.gate_proj.weight"], places[f"{base}.up_proj.weight"] = gate, up
        elif name.endswith("mlp.down"):
            for expert, part in enumerate(tensor):
                places[f"model.{name[: -len('down')]}experts.{expert}.down_proj.weight"] = part
        elif name.endswith("self_attn.key_expansion"):
            values = state[name.replace("key", "value")]
            places[f"model.{name[: -len('key_expansion')]}kv_b_proj.weight"] = _Interleaved((tensor, values))
        elif not name.endswith("self_attn.value_expansion"):
            places[f"model.{name}"] = tensor
    return places


def _in_layers(name: str, config: ModelConfig) -> str:
    """Rename the parts of the multi-token prediction: checkpoints have them as one more layer."""
    return re.sub(r"^mtp\.(layer\.)?", f"layers.{config.num_hidden_layers}.", name)


def _elsewhere(name: str, config: ModelConfig) -> bool:
    """Whether a tensor of the checkpoint is none of this model's business."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    beyond = layer is not None and int(layer[1]) >= config.cached_layers
    tied = config.tie_word_embeddings and name == "lm_head.weight"
    return beyond or tied or name in _copies(config) or ".engram.embed." in name or name.endswith("rotary_emb.inv_freq")


def _copies(config: ModelConfig) -> dict[str, str]:
    """What checkpoints repeat for the multi-token prediction -> the tensor that it shares with the backbone."""
    ahead = f"model.layers.{config.num_hidden_layers}"
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return {f"{ahead}.embed_tokens.weight": "model.embed_tokens.weight", f"{ahead}.shared_head.head.weight": head}


def _files(model_dir: Path) -> list[Path]:
    index = model_dir / INDEX
    names = _sharded_names(index) if index.is_file() else [SINGLE]
    for name in names:
        if not (model_dir / name).is_file():
            raise ValueError(f"model: {model_dir / name} does not exist; copy the whole checkpoint")
    return [model_dir / name for name in names]


def _sharded_names(index: Path) -> list[str]:
    try:
        return sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"model: {index} is not an index of safetensors files ({error!r}); copy it again") from error


def _tensors(model_dir: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of all files one at a time, fp8 weights dequantised."""
    files = _files(model_dir)
    block = _block_size(model_dir)
    scales = {name: tensor for path in files for name, tensor in _read(path, scales=True)}
    for path in files:
        for name, tensor in _read(path, scales=False):
            stem = name.removesuffix(".weight")
            scale = next((scales[stem + end] for end in _SCALES if stem + end in scales), None)
            if scale is None and tensor.dtype in _FP8:
                raise ValueError(f"checkpoint: tensor {name} is fp8 but {stem}{_SCALES[0]} is absent; copy every file")
            yield name, tensor if scale is None else dequantise(name, tensor, scale, block)


def _block_size(model_dir: Path) -> tuple[int, ...] | None:
    """Return (rows, columns) of config.json's quantization_config, None where it has no blocks."""
    quantization = read_config(model_dir).get("quantization_config") or {}
    block = quantization.get("weight_block_size") if isinstance(quantization, dict) else quantization
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(isinstance(b, int) and b > 0 for b in block):
        raise ValueError(f"quantization_config: weight_block_size {block!r} is not supported; expected [rows, columns]")
    return tuple(block)


def _holds_layer(model_dir: Path, layer: int) -> bool:
    for path in _files(model_dir):
        with _opened(path) as file:
            if any(name.startswith(f"model.layers.{layer}.") for name in file.keys()):  # noqa: SIM118 -- not a mapping
                return True
    return False


def _read(path: Path, scales: bool) -> Iterator[tuple[str, Tensor]]:
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 -- not a mapping
            if name.endswith(_SCALES) == scales and ".engram.embed." not in name:
                yield name, file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"model: {path} is damaged or cut short ({error}); copy it again") from error


def dequantise(name: str, weight: Tensor, scale: Tensor, block: tuple[int, ...] | None = None) -> Tensor:
    """Multiply blocks of an fp8 matrix [m, n] by their scales [ceil(m / rows), ceil(n / columns)]; returns fp32.

    `block` is (rows, columns) as config.json has it. Where it is absent or does not fit the scales, as for
    tensors with blocks of their own, blocks are square and a power of two.
    """
    fits = (b for b in (block, _implied_block(weight, scale)) if b and _scales_shape(weight, b) == scale.shape)
    found = next(fits, None)
    if found is None:
        shapes = f"shape {tuple(weight.shape)} and its scales {tuple(scale.shape)}"
        raise ValueError(f"checkpoint: tensor {name} has {shapes}, which fit no block size; is the file damaged?")
    full = scale.float().repeat_interleave(found[0], 0).repeat_interleave(found[1], 1)
    return weight.float() * full[: weight.shape[0], : weight.shape[1]]


def _implied_block(weight: Tensor, scale: Tensor) -> tuple[int, ...] | None:
    """The square block that explains the scales' shape: an axis cut in two or more shows over half of it."""
    if weight.ndim != 2 or scale.ndim != 2 or not scale.numel():
        return None
    size = max(-(-size // count) for size, count in zip(weight.shape, scale.shape, strict=True))
    return (1 << (size - 1).bit_length(),) * 2


def _scales_shape(weight: Tensor, block: tuple[int, ...]) -> tuple[int, ...] | None:
    if weight.ndim != 2:
        return None
    return tuple(-(-size // part) for size, part in zip(weight.shape, block, strict=True))


def save_model(
    model: Transformer, model_dir: str | Path, dtype: torch.dtype = torch.bfloat16, shard_bytes: int = 4 << 30
) -> None:
    """Write config.json and the weights, in files of at most `shard_bytes` where tensors allow it.

    The routers' correction biases stay in fp32: they are compared with each other, not multiplied.
    """
    directory = Path(model_dir)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.to(torch.float32 if name.endswith("correction_bias") else dtype).contiguous().cpu()
        for name, place in _places(model).items()
        for tensor in [place.joined() if isinstance(place, _Interleaved) else place]
    }
    if model.mtp is not None:  # other engines read the copies
        tensors |= {copy: tensors[name].clone() for copy, name in _copies(model.config).items()}
    config = model.config.to_dict() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    groups = _split(tensors, shard_bytes)
    if len(groups) == 1:
        save_file(tensors, directory / SINGLE, metadata={"format": "pt"})
        (directory / INDEX).unlink(missing_ok=True)  # of an earlier save: readers would follow it
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: tensors[name] for name in names}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (directory / SINGLE).unlink(missing_ok=True)


def _split(tensors: Mapping[str, Tensor], shard_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    return groups
