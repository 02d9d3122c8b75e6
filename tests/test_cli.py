"""The commands: what they do, and one line on stderr with exit code 2 where they cannot."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from support import ROOT, lively, same_tensors

from mnv3nb import DENSE_WIDTHS, count_flops, count_parameters, keep_masks, load_model, prune, save_model, score, train
from mnv3nb.__main__ import COMMANDS, main
from mnv3nb.deploy.widths import fit_masks
from mnv3nb.repair import fold_bias
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.grid import plan
from mnv3nb.runs.profiles import get_profile

TRAIN = "mnv3nb.runs.find_or_train.train"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "m.safetensors"
    save_model(lively(), path, image_size=32, accuracy=0.9, classes=["a"] * 10)
    return path


def refused(capsys, arguments: list, message: str) -> None:
    """`main` ends with 2 and says why in one line."""
    assert main([str(a) for a in arguments]) == 2
    out, error = capsys.readouterr()
    assert error.count("\n") == 1 and error.startswith(f"mnv3nb {arguments[0]}: ")
    assert re.search(message, error), error
    assert "written" not in out


# prune


def test_prune_writes_the_network_that_the_functions_give(stored, tmp_path, capsys):
    out = tmp_path / "new" / "small.safetensors"
    assert (
        main(["prune", str(stored), "--rate", "0.5", "--criterion", "l1", "--multiple-of", "8", "--out", str(out)]) == 0
    )
    model, small = load_model(stored), load_model(out)
    assert same_tensors(small.state_dict(), prune(model, keep_masks(score(model, "l1"), 0.5, 8)).state_dict())
    assert all(width % 8 == 0 for width in small.widths)
    assert small.metadata["pruned"] == {"rate": 0.5, "criterion": "l1"} and small.metadata["image_size"] == 32
    assert "accuracy" not in small.metadata  # nobody has measured it
    printed = capsys.readouterr().out
    assert f"4,215,130 -> {count_parameters(small):,}" in printed and f"written: {out}" in printed
    assert f"FLOPs at 32 px: {count_flops(model, 32):,} -> {count_flops(small, 32):,}" in printed
    assert f"widths: {' '.join(map(str, small.widths))}" in printed


def test_prune_folds_constants_and_fits_widths_to_a_budget(stored, tmp_path):
    out = tmp_path / "small.safetensors"
    options = ["--multiple-of", "16", "--budget", "parameters", "--fold-bias", "--out", str(out)]
    assert main(["prune", str(stored), "--rate", "0.5", *options]) == 0
    model = load_model(stored)
    masks = fit_masks(model, score(model), 0.5, 16, "parameters")
    folded = fold_bias(model, prune(model, masks), masks, 32)
    assert same_tensors(load_model(out).state_dict(), folded.state_dict())
    assert not same_tensors(folded.state_dict(), prune(model, masks).state_dict())


def test_a_pruned_network_can_be_pruned_again(stored, tmp_path):
    paths = [stored, tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for source, target in itertools.pairwise(paths):
        assert main(["prune", str(source), "--rate", "0.3", "--out", str(target)]) == 0
    assert sum(load_model(paths[2]).widths) < sum(load_model(paths[1]).widths) < sum(DENSE_WIDTHS)


def test_prune_refuses_what_makes_no_sense_and_writes_nothing(stored, tmp_path, capsys):
    out = tmp_path / "small.safetensors"
    half = tmp_path / "half.safetensors"
    half.write_bytes(stored.read_bytes()[:100_000])
    for changes, message in (
        ({"--rate": 1.0}, r"rate must be in \[0, 1\), got 1.0 \(0.5 removes half of all filters\)"),
        ({"--rate": "nan"}, "rate must be in"),
        ({"--criterion": "l11"}, "unknown criterion 'l11'; did you mean 'l1'"),
        ({"--criterion": "taylor"}, "'taylor' needs images"),
        ({"--multiple-of": 0}, "multiple_of must be an integer ≥ 1, got 0"),
        ({"--out": tmp_path / "small.pt"}, r"must end in \.safetensors"),
        ({"model": tmp_path / "none.safetensors"}, "no file .*none.safetensors"),
        ({"model": half}, "is not a whole safetensors file"),
        ({"--out": stored / "below" / "a.safetensors"}, "cannot write .*a.safetensors"),
    ):
        options = {"model": stored, "--rate": 0.5, "--out": out} | changes
        model = options.pop("model")
        refused(capsys, ["prune", model, *(str(word) for pair in options.items() for word in pair)], message)
    assert [path.name for path in tmp_path.iterdir()] == ["half.safetensors"]


# export


def test_export_refuses_before_it_starts(stored, tmp_path, capsys):
    save_model(lively(), tmp_path / "plain.safetensors")
    plain = ["export", tmp_path / "plain.safetensors", tmp_path / "m.onnx"]
    refused(capsys, plain, "does not store its image size; give --image-size")
    save_model(lively(), tmp_path / "strange.safetensors", image_size="32")
    strange = tmp_path / "strange.safetensors"
    refused(capsys, ["export", strange, tmp_path / "m.onnx"], "at least 1 pixel, got '32'")
    strange.unlink()
    for size in ("0", "-5"):
        refused(capsys, ["export", stored, tmp_path / "m.onnx", "--image-size", size], f"at least 1 pixel, got {size}")
    refused(capsys, ["export", stored, tmp_path / "m.pb"], r"must end in \.onnx or \.pt2 or \.safetensors")
    refused(capsys, ["export", tmp_path / "none.safetensors", tmp_path / "m.onnx"], "no file")
    assert [path.name for path in tmp_path.iterdir()] == ["plain.safetensors"]


@pytest.mark.parametrize(("extra", "size"), [([], 32), (["--image-size", "64"], 64)])
def test_export_takes_the_stored_image_size_or_the_one_given(stored, tmp_path, capsys, monkeypatch, extra, size):
    calls = []
    monkeypatch.setattr("mnv3nb.__main__.export_onnx", lambda *arguments: calls.append(arguments))
    assert main(["export", str(stored), str(tmp_path / "m.onnx"), *extra]) == 0
    ((model, path, image_size),) = calls
    assert same_tensors(model.state_dict(), load_model(stored).state_dict())
    assert (path, image_size) == (str(tmp_path / "m.onnx"), size)
    assert f"(batch, 3, {size}, {size}) in [-1, 1]" in capsys.readouterr().out


def test_export_writes_a_program_and_a_half_precision_copy_that_work_alike(stored, tmp_path, capsys):
    program, half = tmp_path / "m.pt2", tmp_path / "half.safetensors"
    for out in (program, half):
        assert main(["export", str(stored), str(out)]) == 0
        assert f"written: {out}" in capsys.readouterr().out
    model, x = load_model(stored), torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(torch.export.load(program).module()(x), model(x), rtol=1e-4, atol=1e-4)
    small = load_model(half)
    assert half.stat().st_size < 0.55 * stored.stat().st_size
    assert all(torch.equal(a, b) for a, b in zip(keep_masks(score(small), 0.5), keep_masks(score(model), 0.5)))
    assert "accuracy" not in small.metadata and small.metadata["image_size"] == 32


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_one_line_that_says_what_to_do(stored, tmp_path, package):
    call = f"import sys; sys.modules[{package!r}] = None; from mnv3nb.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", call, "export", stored, tmp_path / "m.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert re.fullmatch(f"mnv3nb export: .*{package}.*; pip install -r requirements.txt.*\n", done.stderr), done.stderr
    assert not (tmp_path / "m.onnx").exists()


# grid


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty `$MNV3NB_HOME`, and no network to download from."""
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path))
    monkeypatch.setenv("MNV3NB_MIRROR", "http://127.0.0.1:9")
    return tmp_path


@pytest.mark.parametrize("profile", ["smoke", "paper"])  # the second's data are not there
def test_a_dry_run_lists_what_is_missing_and_makes_nothing(home, capsys, monkeypatch, profile):
    monkeypatch.setattr(TRAIN, None)
    command = ["grid", "--profile", profile, "--only", "table5,fig6", "--seed", "3", "--record", "--dry-run"]
    assert main(command) == 0
    configs = {c.key: c for name in ("pruned", "lambdas") for c in get_profile(profile).experiment(name, 3)}
    missing = plan(Runs(), configs.values())
    out = capsys.readouterr().out
    assert f"{len(missing)} run(s) missing of {len(configs)}; profile {profile}" in out
    assert all(f"{c.key}  {c.label}, {c.train.epochs} epochs" in out for c in missing)
    assert set(configs) <= {c.key for c in missing}
    assert not list(home.rglob("*.json"))


def test_a_grid_whose_data_are_not_there_ends_before_it_starts_and_names_the_variable(home, capsys, monkeypatch):
    monkeypatch.setattr(TRAIN, None)
    refused(capsys, ["grid", "--profile", "cifar", "--only", "half"], "cifar10 is not at .*set MNV3NB_MIRROR")
    assert not (home / "runs").exists()


def test_a_code_page_without_lambda_does_not_stop_a_command(tmp_path):
    words = [sys.executable, "-m", "mnv3nb", "grid", "--profile", "smoke", "--only", "plain_and_sparse", "--dry-run"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "MNV3NB_HOME": str(tmp_path)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0 and b"digits" in done.stdout, done.stderr


def test_grid_trains_what_is_missing_once_and_tells_of_other_formats(home, capsys):
    for number in range(3):
        (home / "results" / f"old{number}").mkdir(parents=True)
        (home / "results" / f"old{number}" / "config.json").write_text('{"format": 2}')
    for _ in range(2):
        assert main(["grid", "--profile", "smoke", "--only", "sparse"]) == 0
    out, error = capsys.readouterr()
    assert out.count("1 run(s) missing of 1") == 1 and out.count("0 run(s) missing of 1") == 1
    assert error.splitlines() == 2 * [f"{home / 'results'}: skipping 3 run(s) of another format: old0 ..."]
    (config,) = get_profile("smoke").experiment("sparse")
    assert Runs().find(config, model=True)


def test_a_grid_records_each_run_as_soon_as_it_is_finished_and_children_start_from_it(home, capsys, monkeypatch):
    """Of the two children the pruned one diverges: the other is recorded all the same."""
    profile, recorded = get_profile("smoke"), Runs(home / "none", home / "results")

    def diverge_if_pruned(model, data, config, **more):
        if config.lam == 0:
            assert recorded.find(profile.sparse_config(), model=True)
        if sum(model.widths) < sum(DENSE_WIDTHS):
            raise FloatingPointError("training diverged: λ=0")
        return train(model, data, config, **more)

    monkeypatch.setattr(TRAIN, diverge_if_pruned)
    for _ in range(2):
        assert main(["grid", "--profile", "smoke", "--only", "half", "--record"]) == 2
        error = capsys.readouterr().err
        assert "1 run(s) failed" in error and "training diverged: λ=0" in error and "Traceback" not in error
        assert recorded.find(profile.sparse_config(), model=True) and recorded.find(
            profile.pruned_config(0.0), model=True
        )
        assert not recorded.find(profile.pruned_config(0.5))
        shutil.rmtree(home / "results")  # the second time the runs are there and only recorded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "smok"], "unknown profile 'smok'; did you mean 'smoke'"),
        (["--profile", "smoke", "--only", "table7"], "unknown experiment 'table7'; did you mean 'table"),
        (["--profile", "smoke", "--only", "table3,"], "unknown experiment ''"),
        (["--profile", "smoke", "--seed", "-1"], "seed must be an integer ≥ 0, got -1"),
    ],
)
def test_grid_refuses_unknown_names(capsys, arguments, message):
    refused(capsys, ["grid", *arguments], message)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "terminated")]
)
def test_interrupted_it_reports_that_it_can_be_resumed(capsys, monkeypatch, number, code, word):
    monkeypatch.setattr(Runs, "find", lambda *_: os.kill(os.getpid(), number))
    before = signal.getsignal(signal.SIGTERM)
    assert main(["grid", "--profile", "smoke"]) == code
    assert capsys.readouterr().err == f"mnv3nb grid: {word}; the same command resumes\n"
    assert signal.getsignal(signal.SIGTERM) == before


# figures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "digitz"], "unknown profile 'digitz'; did you mean 'digits'"),
        (["--only", "02,77"], "no notebook numbered 77; there are 00, 01"),
        (["--only", "two"], "no notebook numbered two"),
        (["-p", "sead", "1"], "no notebook has a parameter sead; there are .*seed"),
        (["-p", "folder", "x"], "no notebook has a parameter folder"),
        (["-p", "only", "x"], "no notebook has a parameter only"),
        (["-p", "seed", "[1"], "a parameter's value is not a plain number, word or list"),
    ],
)
def test_figures_refuses_unknown_names_before_any_notebook_runs(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("mnv3nb.runs.notebooks._run_notebook", None)
    refused(capsys, ["figures", *arguments], message)


def test_figures_passes_parameters_on_and_ends_with_1_if_a_notebook_fails(capsys, monkeypatch):
    calls = []

    def run(path, copy, parameters, timeout):
        calls.append((path.name[:2], parameters, timeout))
        return "cell 3: ValueError: no" if path.name.startswith("02") else None

    monkeypatch.setattr("mnv3nb.runs.notebooks._run_notebook", run)
    assert main(["figures", "--profile", "smoke", "--only", "2,00", "-p", "seed", "4", "--timeout", "9"]) == 1
    given = {"profile": "smoke", "seed": 4}
    assert calls == [("02", given | {"seeds": 1}, 9.0), ("00", given, 9.0)]
    assert capsys.readouterr().err == "mnv3nb figures: 02_sparse_training.ipynb: cell 3: ValueError: no\n"
    monkeypatch.setattr("mnv3nb.runs.notebooks._run_notebook", lambda *_: None)
    assert main(["figures", "--profile", "smoke"]) == 0


# the process


@pytest.mark.parametrize(
    "arguments", [[], ["fig"], ["prune"], ["figures", "--profil", "smoke"], ["grid", "--seed", "x"]]
)
def test_wrong_words_end_with_2_and_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage: mnv3nb" in capsys.readouterr().err


def test_as_a_command_it_has_these_exit_codes_and_no_traceback(tmp_path):
    missing = tmp_path / "none.safetensors"
    command = [sys.executable, "-m", "mnv3nb", "prune", str(missing), "--rate", "0.5", "--out", "o.safetensors"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"mnv3nb prune: no file {missing}; give a .safetensors file that mnv3nb wrote\n"


def test_every_command_has_a_line_of_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {add.__doc__}" in out for name, add in COMMANDS.items())


def test_a_grid_without_names_follows_the_plan_in_its_order(home, capsys, monkeypatch):
    monkeypatch.setattr(TRAIN, None)
    assert main(["grid", "--profile", "cifar", "--dry-run"]) == 0
    p, listed = get_profile("cifar"), re.findall(r"^  (\w{12})  ", capsys.readouterr().out, re.MULTILINE)
    first = [p.sparse_config(0.0), p.sparse_config(), p.pruned_config(0.0), p.pruned_config(0.5)]
    assert listed[:6] == [c.key for c in [*first, p.sparse_config(0.0, 1), p.sparse_config(None, 1)]]
    assert sorted(listed) == sorted({c.key for run in p.planned() for c in (run, run.parent) if c})
    assert {c.train.seed for c in p.planned()} == {0, 1, 2}


def test_a_grid_of_another_seed_trains_what_the_plan_has_for_its_last_one(home, capsys, monkeypatch):
    monkeypatch.setattr(TRAIN, None)
    assert main(["grid", "--profile", "cifar", "--seed", "7", "--dry-run"]) == 0
    listed = re.findall(r"^  (\w{12})  ", capsys.readouterr().out, re.MULTILINE)
    p = get_profile("cifar")
    like = [c for c in p.planned() if c.train.seed == 2]
    assert [c.label.replace("seed 7", "seed 2") for c in p.planned(7)] == [c.label for c in like]
    assert set(listed) == {c.key for run in p.planned(7) for c in (run, run.parent) if c}
    assert sorted({c.key for s in range(3) for c in p.planned(s)}) == sorted({c.key for c in p.planned()})
