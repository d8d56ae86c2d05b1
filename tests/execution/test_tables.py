"""Operator tables: curves and grids, our own format, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvarena.framework.execution.contract import ModelShape
from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.tables import AttentionTables, Curve, Grid, LinkTimes, OperatorTables, load_tables
from kvarena.framework.execution.tables.lines import Cells, Line
from kvarena.framework.execution.tables.operators import Uneven
from kvarena.framework.schema import ConfigError

SHAPE = ModelShape("small", 2, 64, 4, 2, 16, 1000, 400_000, 64_000, 2, 512)


def hardware(**changes):
    names = {name: 1.0 for name in Hardware.__dataclass_fields__}
    return Hardware(**(names | {"name": "box", "devices": 1, "duplex_loss": 0.1, "host_links": 2} | changes))


def row(*values):
    return np.array(values, dtype=np.float64)


def tables(**changes):
    decode = Grid.of_points([row(1, 1, 4, 4), row(16, 64, 16, 64)], row(1e-3, 2e-3, 2e-3, 6e-3))
    prefill = Grid.of_points([row(16, 64), row(0, 0)], row(1e-3, 5e-3))
    mixed = Grid.of_points([row(16, 16), row(0, 0), row(1, 1), row(16, 64)], row(2e-3, 3e-3))
    return replace(
        OperatorTables(
            source="a test",
            shape=SHAPE,
            dense=Curve(row(1, 8, 64), row(1e-3, 1e-3, 5e-3)),
            head=Curve(row(1, 8), row(2e-4, 3e-4)),
            attention=AttentionTables(
                prefill=prefill,
                decode=decode,
                mixed=mixed,
                uneven_decode=Uneven((row(1, 4), row(0.1, 0.9)), np.array([[0.0, 0.0], [1e-6, -1e-6]])),
            ),
            iteration_s=1e-4,
            sequence_s=1e-5,
            links=LinkTimes(host_bytes_per_s=1e9, duplex_loss=0.2),
        ),
        **changes,
    )


def refuses(folder, words, shape=SHAPE, machine=None):
    with pytest.raises(ConfigError, match=words) as error:
        load_tables(folder, shape, machine or hardware())
    assert "\n" not in str(error.value)


# --- curves, grids, lines ---------------------------------------------------------------------------------------------


def test_a_curve_is_linear_between_its_points_and_goes_on_after_the_last():
    curve = Curve(row(1, 3, 5), row(1.0, 2.0, 6.0))
    assert [curve.at(x) for x in (0, 1, 2, 3, 4, 5, 7)] == [1.0, 1.0, 1.5, 2.0, 4.0, 6.0, 10.0]
    assert curve.covers(5) and not curve.covers(5.1) and not curve.covers(0.5)


def test_a_stepped_curve_takes_the_next_point():
    curve = Curve(row(1, 2, 16, 32), row(1.0, 2.0, 3.0, 4.0)).stepped()
    assert [curve.at(x) for x in (1, 2, 3, 15, 16, 17, 32)] == [1.0, 2.0, 3.0, 3.0, 3.0, 4.0, 4.0]


def test_points_of_a_curve_come_in_any_order_and_equal_ones_give_their_median():
    curve = Curve.of_points(row(4, 1, 4, 4), row(3.0, 1.0, 9.0, 4.0))
    assert curve.x.tolist() == [1, 4] and curve.seconds.tolist() == [1.0, 4.0]


@pytest.mark.parametrize(
    ("x", "seconds", "words"),
    [
        ((2, 1), (1, 1), "increasing"),
        ((1, 1), (1, 1), "increasing"),
        ((-1, 1), (1, 1), ">= 0"),
        ((1, 2), (1, 0), "> 0"),
        ((1, 2), (1, float("nan")), "finite"),
        ((1,), (1, 2), "equal length"),
        ((), (), "equal length"),
    ],
)
def test_a_curve_refuses_what_no_measurement_gives(x, seconds, words):
    with pytest.raises(ValueError, match=words):
        Curve(row(*x), row(*seconds))


def test_holes_of_a_grid_are_filled_from_the_nearest_neighbours():
    grid = Grid.of_points([row(1, 2, 4, 2, 2), row(8, 1, 8, 16, 64)], row(1.0, 9.0, 3.0, 9.0, 9.0))
    assert np.isnan(grid.seconds[1, 1])
    assert grid.filled().seconds[1, 1] == pytest.approx(1.0 + 2.0 / 3)  # 1 .. 4 lie nearer than 1 .. 16


def test_what_no_neighbours_enclose_follows_the_work():
    grid = Grid.of_points([row(1, 1, 2), row(10, 20, 10)], row(1.0, 2.0, 3.0))
    full = grid.completed(lambda point: point[0] * point[1])
    assert full.seconds[1, 1] == pytest.approx(6.0)  # as far over the work as (2, 10)


def test_points_of_a_grid_are_those_it_was_made_of():
    columns, seconds = [row(1, 2, 2), row(5, 5, 7)], row(1.0, 2.0, 3.0)
    again, values = Grid.of_points(columns, seconds).points()
    assert [column.tolist() for column in again] == [column.tolist() for column in columns]
    assert values.tolist() == seconds.tolist()


xs = st.lists(st.integers(0, 500), min_size=1, max_size=6, unique=True).map(sorted)


@given(xs, st.data(), st.floats(0, 600), st.integers(0, 300))
def test_the_total_of_a_line_is_the_sum_of_its_values(points, data, start, steps):
    ys = data.draw(st.lists(st.floats(0.1, 10), min_size=len(points), max_size=len(points)))
    line = Line([float(x) for x in points], ys, 0.25)
    assert line.total(start, steps) == pytest.approx(sum(line.at(start + i) for i in range(steps)), rel=1e-9, abs=1e-9)


@given(st.floats(-5, 20), st.floats(-5, 20))
def test_cells_are_bilinear_inside_and_flat_outside(x, y):
    axes, values = [[0.0, 10.0], [0.0, 5.0, 10.0]], [1.0, 2.0, 3.0, 3.0, 4.0, 5.0]
    inside_x, inside_y = min(max(x, 0.0), 10.0), min(max(y, 0.0), 10.0)
    assert Cells(axes, values).at(x, y) == pytest.approx(1 + inside_x / 5 + inside_y / 5)


# --- our own format ---------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path):
    saved = tables()
    saved.save(tmp_path / "new" / "folder")
    loaded = load_tables(tmp_path / "new" / "folder", SHAPE, hardware())
    assert (loaded.source, loaded.iteration_s, loaded.links) == (saved.source, saved.iteration_s, saved.links)
    assert loaded.dense.seconds.tolist() == saved.dense.seconds.tolist()
    assert loaded.head.x.tolist() == [1, 8]
    for name in ("prefill", "decode", "mixed", "uneven_decode"):
        before, after = getattr(saved.attention, name), getattr(loaded.attention, name)
        assert [axis.tolist() for axis in after.axes] == [axis.tolist() for axis in before.axes], name
        assert np.array_equal(after.seconds, before.seconds, equal_nan=True), name
    assert loaded.attention.prefills is None and loaded.attention.uneven_mixed is None


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        tables().save(tmp_path / name)
    for file in ("operators.parquet", "meta.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_another_model_or_machine_is_refused(tmp_path):
    tables().save(tmp_path)
    refuses(tmp_path, "num_layers=2, but model 'small' has num_layers=3", replace(SHAPE, num_layers=3))
    refuses(tmp_path, "num_kv_heads", replace(SHAPE, num_kv_heads=4))
    refuses(tmp_path, "1 devices, but hardware 'box' has 4", machine=hardware(devices=4))


def change(folder: Path, **columns):
    table = pq.read_table(folder / "operators.parquet").to_pydict()
    for name, (index, value) in columns.items():
        table[name][index] = value
    pq.write_table(pa.table(table), folder / "operators.parquet")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seconds", -1.0, "row 0, column 'seconds' is -1.0, expected a number > 0"),
        ("seconds", 0.0, "row 0, column 'seconds' is 0.0, expected a number > 0"),
        ("seconds", float("nan"), "row 0, column 'seconds' is nan"),
        ("tokens", 1.5, "row 0, column 'tokens' is 1.5, expected a whole number"),
        ("operator", "sort", "unknown operator 'sort'"),
    ],
)
def test_impossible_values_are_named_with_file_row_and_column(tmp_path, name, value, words):
    tables().save(tmp_path)
    change(tmp_path, **{name: (0, value)})
    refuses(tmp_path, f"operators.parquet: .*{words}")


def test_missing_columns_and_files_are_named(tmp_path):
    tables().save(tmp_path)
    path = tmp_path / "operators.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["context"]), path)
    refuses(tmp_path, "operators.parquet: column 'context' is missing")
    path.unlink()
    refuses(tmp_path, "operators.parquet: cannot be read")
    path.write_bytes(b"no parquet")
    refuses(tmp_path, "operators.parquet: cannot be read")


def test_bad_meta_is_named(tmp_path):
    tables().save(tmp_path)
    path = tmp_path / "meta.json"
    meta = json.loads(path.read_text())
    for changes, words in (
        ({"schema": 9}, "schema is 9, expected 1"),
        ({"iteration_s": -1.0}, "iteration_s=-1.0"),
        ({"shape": {"name": "x"}}, "shape: .* must be given"),
        ({"links": {"duplex_loss": 2.0}}, "duplex_loss=2.0"),
    ):
        path.write_text(json.dumps(meta | changes))
        refuses(tmp_path, words)
    del meta["source"]
    path.write_text(json.dumps(meta))
    refuses(tmp_path, "'source' is missing")
    path.write_text("{")
    refuses(tmp_path, "meta.json: cannot be read")


def test_a_folder_without_tables_is_refused(tmp_path):
    refuses(tmp_path, "no tables that are known")
    refuses(tmp_path / "none", "is not a folder")


def test_measured_links_replace_those_of_the_hardware():
    machine = LinkTimes(host_bytes_per_s=3e9, host_latency_s=1e-5, disk_read_bytes_per_s=7e8).on(hardware())
    assert (machine.host_bytes_per_s, machine.host_link_latency_s, machine.disk_read_bytes_per_s) == (3e9, 1e-5, 7e8)
    assert machine.disk_write_bytes_per_s == 1.0
    assert LinkTimes().on(hardware()) == hardware()
