"""Texts come back from the spool in any order."""

from __future__ import annotations

from reasoning.corpora.spool import TextSpool


def test_texts_come_back_in_any_order_and_the_file_goes_when_it_is_deleted(tmp_path):
    spool = TextSpool(tmp_path / "texts")
    texts = ["naïve 秦 😀\r\n", "x", "\ufeffend"]
    files = [spool.add("s", "p", f"{number}.py", text) for number, text in enumerate(texts)]
    assert list(spool.texts(files[::-1])) == texts[::-1]
    assert [file.size for file in files] == [len(text.encode()) for text in texts]
    late = spool.add("s", "p", "late.py", "late")
    assert (spool.text(late), spool.text(files[0])) == ("late", texts[0])
    assert len({file.key for file in [*files, late]}) == 4
    spool.delete()
    assert list(tmp_path.iterdir()) == []
