"""Which file holds which tensor: with and without an index, in files that contradict each other, outside the folder."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.checkpoint.files import INDEX, SINGLE, open_checkpoint
from reasoning.checkpoint.load import load_model
from reasoning.checkpoint.save import save_model
from tests.reasoning.conftest import TINY, random_model


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint of several files, and the state of its model."""
    directory = tmp_path / "model"
    model = random_model(DeepseekV3Config.from_dict(TINY))
    save_model(model, directory, torch.float32, shard_bytes=20_000)
    return directory, model.state_dict()


def assert_loads(directory, state):
    for name, tensor in load_model(directory).state_dict().items():
        assert torch.equal(tensor, state[name]), name


def point(directory, name):
    """Let the index name another file for one of the tensors."""
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (directory / INDEX).write_text(json.dumps(index))


def test_headers_tell_type_and_shape_of_every_tensor(sharded):
    directory, _ = sharded
    with open_checkpoint(directory) as stored:
        assert set(stored) == {name for path in directory.glob("*.safetensors") for name in load_file(path)}
        norm = stored["model.norm.weight"]
        assert (norm.dtype, norm.shape, norm.read().shape) == ("F32", (32,), (32,))


def test_shards_without_an_index_load_if_they_are_complete(sharded):
    directory, state = sharded
    (directory / INDEX).unlink()
    assert_loads(directory, state)
    last = sorted(directory.glob("*.safetensors"))[-1]
    last.unlink()
    with pytest.raises(ValueError, match=rf"{last.name} does not exist; copy the whole checkpoint, as its other files"):
        load_model(directory)


def test_files_of_any_name_load_without_an_index(sharded):
    directory, state = sharded
    (directory / INDEX).unlink()
    for number, path in enumerate(sorted(directory.glob("*.safetensors"))):
        path.rename(directory / f"part{number}.safetensors")
    assert_loads(directory, state)
    (directory / "part0.safetensors").unlink()
    with pytest.raises(ValueError, match=r"tensors are missing, such as .*is a shard file absent"):
        load_model(directory)


def test_a_single_file_is_preferred_to_others_that_no_index_names(sharded):
    directory, state = sharded
    shards = sorted(directory.glob("*.safetensors"))
    save_file({name: tensor for path in shards for name, tensor in load_file(path).items()}, directory / SINGLE)
    (directory / INDEX).unlink()
    shards[0].write_bytes(b"of an earlier release")
    assert_loads(directory, state)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_tensor_in_two_files_is_refused_with_the_names_of_both(sharded, indexed):
    directory, _ = sharded
    first, second, *_ = sorted(directory.glob("*.safetensors"))
    twice = next(iter(load_file(second)))
    save_file(load_file(first) | {twice: load_file(second)[twice] + 1}, first)
    if not indexed:
        (directory / INDEX).unlink()
    with pytest.raises(ValueError, match=rf"tensor {twice} is in both {first.name} and {second.name}; remove one"):
        load_model(directory)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../model.safetensors", "sub/../../model.safetensors", "..", "x" * 300, "/" + "x" * 100_000],
    ids=lambda name: name[:30],
)
def test_an_index_must_not_lead_out_of_the_folder(sharded, name):
    directory, _ = sharded
    save_file({"model.norm.weight": torch.ones(32)}, directory.parent / SINGLE)
    point(directory, name)
    with pytest.raises(ValueError, match=r"index\.json names '.*', which is no file of the model's folder") as refused:
        load_model(directory)
    assert len(str(refused.value)) < 600


def test_a_file_in_a_folder_of_the_model_and_links_are_followed(sharded):
    directory, state = sharded
    shards = sorted(directory.glob("*.safetensors"))
    (directory / "sub").mkdir()
    shards[0].rename(directory / "sub" / shards[0].name)
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"] = {
        name: f"sub/{file}" if file == shards[0].name else file for name, file in index["weight_map"].items()
    }
    (directory / INDEX).write_text(json.dumps(index))
    blob = directory.parent / "0123abcd"  # as in the cache of Hugging Face's hub
    shards[1].rename(blob)
    shards[1].symlink_to(blob)
    assert_loads(directory, state)


def test_headers_decide_where_the_index_errs(sharded):
    directory, state = sharded
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    point(directory, files[0])
    assert_loads(directory, state)


@pytest.mark.parametrize(
    "content",
    ['{"weight_map": {"model.norm.weight": 5}}', '{"weight_map": {"a": "b", "c": null}}', "[" * 100_000],
    ids=["a number", "null", "nested"],
)
def test_an_index_of_anything_but_names_is_refused(sharded, content):
    directory, _ = sharded
    (directory / INDEX).write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is not an index of safetensors files"):
        load_model(directory)


def test_an_error_of_a_header_is_cut_short(tmp_path):
    save_model(random_model(DeepseekV3Config.from_dict(TINY)), tmp_path)
    header = json.dumps({"model.norm.weight": {"dtype": "X" * 100_000, "shape": [], "data_offsets": [0, 0]}}).encode()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short \(.*\.\.\.\)") as refused:
        load_model(tmp_path)
    assert len(str(refused.value)) < 600
