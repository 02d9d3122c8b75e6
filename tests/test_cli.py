"""The commands: what they write and print, and their exit codes with one line on stderr for bad input."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from support import ROOT, lively, same_tensors

from mnv3nb import DENSE_WIDTHS, count_flops, count_parameters, keep_masks, load_model, prune, save_model, score, train
from mnv3nb.__main__ import build_parser, job_from, main
from mnv3nb.deploy.widths import fit_masks
from mnv3nb.repair import fold_bias
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.grid import plan
from mnv3nb.runs.profiles import get_profile
from mnv3nb.slim.job import Job

TRAIN = "mnv3nb.runs.find_or_train.train"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "m.safetensors"
    save_model(lively(), path, image_size=32, accuracy=0.9, classes=["a"] * 10)
    return path


def refused(capsys, arguments: list, message: str) -> None:
    """`main` returns 2 and reports why in one line."""
    assert main([str(argument) for argument in arguments]) == 2
    out, error = capsys.readouterr()
    assert error.count("\n") == 1 and error.startswith(f"mnv3nb {arguments[0]}: ")
    assert re.search(message, error), error
    assert "written" not in out


# prune


def test_prune_writes_the_network_that_the_functions_give(stored, tmp_path, capsys):
    out = tmp_path / "new" / "small.safetensors"
    options = ["--rate", "0.5", "--criterion", "l1", "--multiple-of", "8", "--out", str(out)]
    assert main(["prune", str(stored), *options]) == 0
    model = load_model(stored)
    small = load_model(out)
    expected = prune(model, keep_masks(score(model, "l1"), 0.5, 8))
    assert same_tensors(small.state_dict(), expected.state_dict())
    assert all(width % 8 == 0 for width in small.widths)
    assert small.metadata["pruned"] == {"rate": 0.5, "criterion": "l1"} and small.metadata["image_size"] == 32
    assert "accuracy" not in small.metadata  # the stored one was the dense network's
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
        arguments = ["prune", options.pop("model")]
        for name, value in options.items():
            arguments += [name, value]
        refused(capsys, arguments, message)
    assert [path.name for path in tmp_path.iterdir()] == ["half.safetensors"]


# export


def test_export_refuses_bad_input_and_writes_nothing(stored, tmp_path, capsys):
    out = tmp_path / "m.onnx"
    without_size = tmp_path / "without_size.safetensors"
    save_model(lively(), without_size)
    refused(capsys, ["export", without_size, out], "does not store its image size; give --image-size")
    size_as_text = tmp_path / "size_as_text.safetensors"
    save_model(lively(), size_as_text, image_size="32")
    refused(capsys, ["export", size_as_text, out], "at least 1 pixel, got '32'")
    for size in ("0", "-5"):
        refused(capsys, ["export", stored, out, "--image-size", size], f"at least 1 pixel, got {size}")
    refused(capsys, ["export", stored, tmp_path / "m.pb"], r"must end in \.onnx or \.pt2 or \.safetensors")
    refused(capsys, ["export", tmp_path / "none.safetensors", out], "no file")
    assert sorted(tmp_path.iterdir()) == [size_as_text, without_size]


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
    program = tmp_path / "m.pt2"
    half = tmp_path / "half.safetensors"
    for out in (program, half):
        assert main(["export", str(stored), str(out)]) == 0
        assert f"written: {out}" in capsys.readouterr().out
    model = load_model(stored)
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(torch.export.load(program).module()(x), model(x), rtol=1e-4, atol=1e-4)
    assert half.stat().st_size < 0.55 * stored.stat().st_size
    loaded = load_model(half)
    for mask, expected in zip(keep_masks(score(loaded), 0.5), keep_masks(score(model), 0.5), strict=True):
        assert torch.equal(mask, expected)
    assert "accuracy" not in loaded.metadata and loaded.metadata["image_size"] == 32


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_reported_in_one_line_with_what_to_do(stored, tmp_path, package):
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


@pytest.mark.parametrize("profile", ["smoke", "paper"])  # the images of the second are missing
def test_a_dry_run_lists_what_is_missing_and_writes_nothing(home, capsys, monkeypatch, profile):
    monkeypatch.setattr(TRAIN, None)
    command = ["grid", "--profile", profile, "--only", "pruned, lambdas", "--seed", "3", "--record", "--dry-run"]
    assert main(command) == 0
    configs = get_profile(profile).experiment("pruned", 3) + get_profile(profile).experiment("lambdas", 3)
    missing = plan(Runs(), configs)
    keys = {config.key for config in configs}
    out = capsys.readouterr().out
    assert f"{len(missing)} run(s) missing of {len(keys)}; profile {profile}" in out
    assert all(f"{config.key}  {config.label}, {config.train.epochs} epochs" in out for config in missing)
    assert keys <= {config.key for config in missing}
    assert not list(home.rglob("*.json"))


def test_a_grid_without_its_images_ends_before_it_starts_and_names_the_variable(home, capsys, monkeypatch):
    monkeypatch.setattr(TRAIN, None)
    refused(capsys, ["grid", "--profile", "cifar", "--only", "half"], "cifar10 is not at .*set MNV3NB_MIRROR")
    assert not (home / "runs").exists()


def test_a_code_page_without_lambda_does_not_stop_a_command(tmp_path):
    command = [sys.executable, "-m", "mnv3nb", "grid", "--profile", "smoke", "--only", "plain_and_sparse", "--dry-run"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "MNV3NB_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0 and b"digits" in done.stdout, done.stderr


def test_grid_trains_what_is_missing_once_and_reports_other_formats(home, capsys):
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
    """Of the two children, the pruned one diverges. The other one is still recorded."""
    profile = get_profile("smoke")
    recorded = Runs(home / "none", home / "results")

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
        assert recorded.find(profile.sparse_config(), model=True)
        assert recorded.find(profile.pruned_config(0.0), model=True)
        assert not recorded.find(profile.pruned_config(0.5))
        shutil.rmtree(home / "results")  # the second time the runs exist and are only recorded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "smok"], "unknown profile 'smok'; did you mean 'smoke'"),
        (["--profile", "smoke", "--only", "lambda"], "unknown experiment 'lambda'; did you mean 'lambdas'"),
        (["--profile", "smoke", "--only", "table7"], "unknown experiment 'table7'; Allowed: plain_and_sparse, half"),
        (["--profile", "smoke", "--only", "rates,"], "unknown experiment ''"),
        (["--profile", "smoke", "--seed", "-1"], "seed must be an integer ≥ 0, got -1"),
    ],
)
def test_grid_refuses_unknown_names(capsys, arguments, message):
    refused(capsys, ["grid", *arguments], message)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_interrupted_command_reports_that_it_can_be_resumed(capsys, monkeypatch, number, code, word):
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


def test_figures_passes_parameters_on_and_returns_1_if_a_notebook_fails(capsys, monkeypatch):
    calls = []

    def run(path, copy, parameters, timeout):
        calls.append((path.name[:2], parameters, timeout))
        return "cell 3: ValueError: no" if path.name.startswith("02") else None

    monkeypatch.setattr("mnv3nb.runs.notebooks._run_notebook", run)
    assert main(["figures", "--profile", "smoke", "--only", "2,00", "-p", "seed", "4", "--timeout", "9"]) == 1
    assert calls == [
        ("02", {"profile": "smoke", "seed": 4, "seeds": 1}, 9.0),
        ("00", {"profile": "smoke", "seed": 4}, 9.0),
    ]
    assert capsys.readouterr().err == "mnv3nb figures: 02_sparse_training.ipynb: cell 3: ValueError: no\n"
    monkeypatch.setattr("mnv3nb.runs.notebooks._run_notebook", lambda *_: None)
    assert main(["figures", "--profile", "smoke"]) == 0


# the process


@pytest.mark.parametrize(
    "arguments", [[], ["fig"], ["prune"], ["figures", "--profil", "smoke"], ["grid", "--seed", "x"]]
)
def test_wrong_options_end_with_2_and_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage: mnv3nb" in capsys.readouterr().err


def test_as_a_process_it_has_these_exit_codes_and_no_traceback(tmp_path):
    missing = tmp_path / "none.safetensors"
    command = [sys.executable, "-m", "mnv3nb", "prune", str(missing), "--rate", "0.5", "--out", "o.safetensors"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"mnv3nb prune: no file {missing}; give a .safetensors file that mnv3nb wrote\n"


COMMAND_NAMES = ("figures", "grid", "slim", "prune", "export")


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^ +{name} +\w", out, re.MULTILINE) for name in COMMAND_NAMES)


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_every_command_explains_every_option(capsys, name):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    out = without_spaces(capsys.readouterr().out)
    (commands,) = (action for action in build_parser()._actions if action.dest == "command")
    for action in commands.choices[name]._actions:
        assert action.help and without_spaces(action.help) in out


def without_spaces(text: str) -> str:
    """Help is wrapped at spaces and hyphens."""
    return "".join(text.split())


# slim

REQUIRED = {"network": "torchvision/mobilenet_v2", "data": "photos", "out": "small"}


def slim_options(**values) -> list[str]:
    arguments = ["slim"]
    for name, value in (REQUIRED | values).items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    return arguments


def test_the_options_of_slim_have_the_names_and_defaults_of_a_job():
    options = build_parser().parse_args(slim_options())
    assert job_from(options) == Job(**REQUIRED)
    assert set(vars(options)) - {"command", "run"} == {field.name for field in fields(Job)}


def test_the_options_of_slim_have_the_types_of_a_job():
    values = {
        "weights": "mine.pth",
        "criterion": "l1",
        "multiple_of": 8,
        "epochs": 3,
        "image_size": 64,
        "batch_size": 16,
        "lr": 0.003,
        "lam": 1e-4,
        "augment": "none",
        "seed": 7,
    }
    targets = {"rate": 0.4, "max_drop": 1.5, "latency": 0.6, "parameters": 2.3e6}
    assert set(REQUIRED | values | targets) == {field.name for field in fields(Job)}
    for target, value in targets.items():
        given = values | {target: value}
        assert job_from(build_parser().parse_args(slim_options(**given))) == Job(**REQUIRED, **given)


@pytest.mark.parametrize("name", REQUIRED)
def test_slim_demands_a_network_images_and_a_folder(capsys, name):
    arguments = slim_options()
    place = arguments.index(f"--{name}")
    del arguments[place : place + 2]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and f"--{name}" in capsys.readouterr().err


# the plan of a grid


def test_a_grid_without_names_follows_the_plan_in_its_order(home, capsys, monkeypatch):
    monkeypatch.setattr(TRAIN, None)
    assert main(["grid", "--profile", "cifar", "--dry-run"]) == 0
    listed = listed_keys(capsys.readouterr().out)
    p = get_profile("cifar")
    first = [
        p.sparse_config(0.0),
        p.sparse_config(),
        p.pruned_config(0.0),
        p.pruned_config(0.5),
        p.sparse_config(0.0, seed=1),
        p.sparse_config(seed=1),
    ]
    assert listed[:6] == [config.key for config in first]
    assert sorted(listed) == sorted(keys_with_parents(p.planned()))
    assert {config.train.seed for config in p.planned()} == {0, 1, 2}


def test_a_grid_of_a_seed_outside_the_plan_trains_the_runs_of_the_last_seed(home, capsys, monkeypatch):
    monkeypatch.setattr(TRAIN, None)
    assert main(["grid", "--profile", "cifar", "--seed", "7", "--dry-run"]) == 0
    listed = listed_keys(capsys.readouterr().out)
    p = get_profile("cifar")
    labels_of_last_seed = [config.label for config in p.planned() if config.train.seed == 2]
    assert [config.label.replace("seed 7", "seed 2") for config in p.planned(7)] == labels_of_last_seed
    assert set(listed) == keys_with_parents(p.planned(7))


def test_the_seeds_of_a_plan_make_up_the_plan():
    p = get_profile("cifar")
    by_seed = p.planned(0) + p.planned(1) + p.planned(2)
    assert {config.key for config in by_seed} == {config.key for config in p.planned()}


def listed_keys(out: str) -> list[str]:
    return re.findall(r"^  (\w{12})  ", out, re.MULTILINE)


def keys_with_parents(configs) -> set[str]:
    keys = {config.key for config in configs}
    return keys | {config.parent.key for config in configs if config.parent}
