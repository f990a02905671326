"""The split is by project, or by units inside few projects, and does not change as others come and go."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from reasoning.corpora.split import resolve_split, split_files


@dataclass(frozen=True)
class File:
    project: str
    path: str = "a.py"
    size: int = 100


def held(files, share=0.05, split="projects"):
    return {file for file, out in zip(files, split_files(files, share, split), strict=True) if out}


PROJECTS = [File(f"p{number}", path) for number in range(1000) for path in ("a.py", "b/c.py")]


def test_whole_projects_are_held_out_in_the_share_that_was_asked_for():
    out = held(PROJECTS)
    assert {file for file in PROJECTS if file.project in {one.project for one in out}} == out
    assert 0.03 * len(PROJECTS) < len(out) < 0.07 * len(PROJECTS)


def test_the_side_of_a_project_does_not_depend_on_others_or_on_the_order():
    assert held(PROJECTS[::-1]) == held(PROJECTS)
    assert held(PROJECTS[:1000]) == held(PROJECTS) & set(PROJECTS[:1000])
    # Stated, because a split that changes lets a model be tested on what an earlier one was trained on.
    assert sorted({file.project for file in held(PROJECTS)})[:4] == ["p107", "p165", "p168", "p179"]


def test_one_project_is_held_out_even_if_no_hash_says_so():
    files = [File(name) for name in ("a", "b", "c")]
    assert len(held(files, share=1e-9)) == 1
    assert len(held(files, share=1 - 1e-9)) == 2


def test_few_projects_are_split_by_units_and_many_by_project():
    assert resolve_split([File(str(n)) for n in range(9)], "auto") == "units"
    assert resolve_split([File(str(n)) for n in range(10)], "auto") == "projects"
    assert resolve_split([File("a")], "projects") == "projects"


def test_a_unit_is_the_outermost_folder_that_is_no_larger_than_the_share():
    small = [File("p", f"small{n}/{sub}{file}.py", 10) for n in range(50) for sub in ("", "deep/") for file in range(2)]
    large = [File("p", f"large/part{n}/{file}.py", 25) for n in range(50) for file in range(4)]
    files = [*small, *large]
    out = held(files, split="units")
    folders = {tuple(file.path.split("/")[: 1 if file in small else 2]) for file in out}
    whole = [file for file in files if tuple(file.path.split("/")[: 1 if file in small else 2]) in folders]
    assert out == set(whole)
    assert any(file.path.startswith("large") for file in files if file not in out)
    assert 0 < len(folders) < 20


def test_a_flat_project_is_split_by_file():
    files = [File("p", f"{n}.py") for n in range(37)]
    assert 0 < len(held(files, split="units")) < 10


@pytest.mark.parametrize("split", ["projects", "units"])
def test_one_project_or_file_alone_cannot_be_split(split):
    with pytest.raises(ValueError, match=r"sources: there are 1 usable (projects|files), too few to hold any out"):
        split_files([File("p")], 0.05, split)
