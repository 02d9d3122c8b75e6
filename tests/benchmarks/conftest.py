"""Benchmarks run only when asked for: pytest tests/benchmarks --benchmark-enable -s"""

import csv
import os
import platform

import pytest
import torch

from mnv3nb.system.device import environment
from mnv3nb.system.files import default_home

HOME = default_home()  # before the tests move it
FOLDER = HOME / "figures" / "bench"


def pytest_ignore_collect(config):
    return True if not config.getoption("benchmark_enable") else None


@pytest.fixture(autouse=True)
def all_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def kept_home(monkeypatch):
    """`$MNV3NB_HOME` as it is outside the tests: its data, and runs that stay."""
    monkeypatch.setenv("MNV3NB_HOME", str(HOME))
    return HOME


@pytest.fixture(scope="session")
def record():
    """record(table, **row): print a row of figures/bench/<table>.csv, which is written at the end, with the machine."""
    tables: dict[str, list[dict]] = {}

    def add(table: str, **row) -> None:
        print("\n" + ", ".join(f"{name}: {value}" for name, value in row.items()), flush=True)
        machine = environment(torch.device("cpu")) | {"cores": os.cpu_count(), "system": platform.platform()}
        tables.setdefault(table, []).append(row | machine | row)

    yield add
    FOLDER.mkdir(parents=True, exist_ok=True)
    for table, rows in tables.items():
        with open(FOLDER / f"{table}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
