"""balance.data.label_map: AudioSet's label map as classes and as names."""

from __future__ import annotations

import pytest

from balance.data.label_map import LABEL_MAP, read_label_map
from balance.data.ontology import read_ontology
from balance.errors import UserError

MAP = 'index,mid,display_name\n1,/m/b,B\n0,/m/a,"A, a"\n2,/m/c,\n'


def test_order_and_names(tmp_path):
    (tmp_path / LABEL_MAP).write_bytes(b"\xef\xbb\xbf" + MAP.encode())
    assert list(read_label_map(tmp_path / LABEL_MAP).items()) == [("/m/a", "A, a"), ("/m/b", "B"), ("/m/c", "/m/c")]


def test_names_come_from_the_map_where_there_is_no_ontology(tmp_path, caplog):
    assert read_ontology(None, tmp_path) == ({}, None)
    path = tmp_path / LABEL_MAP
    path.write_text(MAP)
    assert read_ontology(None, tmp_path) == ({"/m/a": "A, a", "/m/b": "B", "/m/c": "/m/c"}, path)
    (tmp_path / "ontology.json").write_text('[{"id": "/m/a", "name": "of the ontology"}]')
    assert read_ontology(None, tmp_path) == ({"/m/a": "of the ontology"}, tmp_path / "ontology.json")
    (tmp_path / "ontology.json").unlink()
    path.write_text("a,b\n1,2\n")
    assert read_ontology(None, tmp_path) == ({}, None)
    assert "labels go by their ids" in caplog.text


@pytest.mark.parametrize("rows", ["0,/m/a,A\n2,/m/b,B", "0,/m/a,A\n1,/m/a,B", "0,/m/a,A\nx,/m/b,B", "0,,A", "0"])
def test_mistakes(tmp_path, rows):
    (tmp_path / LABEL_MAP).write_text(f"index,mid,display_name\n{rows}\n")
    with pytest.raises(UserError, match=LABEL_MAP):
        read_label_map(tmp_path / LABEL_MAP)
