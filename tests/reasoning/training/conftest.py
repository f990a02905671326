"""A folder of small Python files, and what is made of it."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as BpeTokenizer

from reasoning.training.corpus import Corpus, train_tokenizer

FILES = 60


def source(number: int) -> str:
    """Regular enough to be learned in seconds, and different in every file."""
    lines = [f'"""Module number {number}."""', "", "import math", ""]
    for i in range(5 + number % 7):
        lines += [f"def function_{number}_{i}(value):", f"    return math.sqrt(value + {i * number})", ""]
    return "\n".join(lines)


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for number in range(FILES):
        path = root / f"package_{number % 4}" / f"module_{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source(number))
    return root


@pytest.fixture(scope="session")
def corpus(corpus_dir: Path) -> Corpus:
    return Corpus.find(corpus_dir)


@pytest.fixture(scope="session")
def bpe(corpus: Corpus) -> BpeTokenizer:
    return train_tokenizer(corpus.train, 300)
