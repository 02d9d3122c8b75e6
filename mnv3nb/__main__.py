"""python -m mnv3nb figures | grid | slim | prune | export"""

import argparse
import errno
import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import fields
from functools import partial

from .costs import count_flops, count_parameters
from .data.datasets import check_size
from .deploy.export import export_onnx, export_program
from .deploy.widths import fit_masks
from .importance import NEEDS_DATA, score
from .networks.checkpoint import load_model, save_model
from .pruning import keep_masks, prune
from .repair import fold_bias
from .runs.cluster import connect
from .runs.find_or_train import Runs
from .runs.folder import other_formats
from .runs.grid import plan, run_grid
from .runs.profiles import get_profile
from .runs.record import recorder
from .slim.job import Job
from .system.device import pick_device
from .system.files import check_ending


def figures(add):
    """run the notebooks and draw every figure and table"""
    add("--profile", default="digits")
    add("--only", help="numbers of notebooks, such as 02,05")
    add("--timeout", type=float, default=3600, help="seconds for each notebook")
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a notebook's parameter")

    def run(options) -> int:
        import yaml  # late: these two come with the notebooks' packages, which the other commands do without

        from .runs.notebooks import run_notebooks

        try:
            parameters = {"profile": options.profile} | {name: yaml.safe_load(value) for name, value in options.p}
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"a parameter's value is not a plain number, word or list ({reason})") from error
        failures = run_notebooks(options.only, options.timeout, **parameters)
        for failure in failures:
            print(f"mnv3nb figures: {failure}", file=sys.stderr)
        return 1 if failures else 0

    return run


def grid(add):
    """train a profile's missing runs, the most valuable first: its whole plan, of it what --seed needs, or --only"""
    add("--profile", default="digits")
    add("--only", help="experiments, such as baseline,half")
    add("--seed", type=int, help="another seed than the plan's gets what its last one does")
    add("--device", help="cuda, mps or cpu")
    add("--scheduler", help="of a Dask cluster that trains, such as tcp://host:8786")
    add("--record", action="store_true", help="copy each run to results/ as soon as it is finished")
    add("--dry-run", action="store_true", help="only list what is missing")

    def run(options) -> int:
        profile, runs = get_profile(options.profile), Runs(device=options.device)
        configs = profile.planned(options.seed)
        if options.only:
            names = [name.strip() for name in options.only.split(",")]
            configs = [config for name in names for config in profile.experiment(name, options.seed or 0)]
        for folder in (runs.recorded, runs.folder):
            if others := other_formats(folder):
                print(f"{folder}: skipping {len(others)} run(s) of another format: {others[0]} ...", file=sys.stderr)
        missing, named = plan(runs, configs), {c.key for config in configs for c in (config, config.parent) if c}
        print(f"{len(missing)} run(s) missing of {len(named)}; profile {profile.name}")
        for config in missing:
            print(f"  {config.key}  {config.label}, {config.train.epochs} epochs")
        if not options.dry_run:
            print("stop at any time: the same command resumes")
            done = recorder(runs, profile, configs) if options.record else None
            with connect(options.scheduler) if options.scheduler else nullcontext() as executor:
                run_grid(runs, configs, executor, done)
        return 0

    return run


def slim(add):
    """a network and photos in: a smaller one, its ONNX files and a report out; the same command resumes"""
    for option in fields(Job):
        kind = next(kind for kind in (float, int, str) if kind.__name__ in str(option.type))
        required = option.default == ""
        add(
            f"--{option.name.replace('_', '-')}",
            type=kind,
            required=required,
            default=option.default,
            **option.metadata,
        )

    def run(options) -> int:
        from .slim.stages import slim  # late, because it brings pandas, matplotlib and nbconvert

        folder = slim(Job(**{option.name: getattr(options, option.name) for option in fields(Job)}))
        print((folder / "report.md").read_text(encoding="utf-8").partition("![")[0])
        print(f"written: {folder}; open {folder / 'report.html'}")
        return 0

    return run


def prune_stored(add):
    """prune a stored network"""
    add("model", help="a .safetensors file")
    add("--rate", type=float, required=True, help="share of filters removed, in [0, 1)")
    add("--criterion", default="gamma_sparsity")
    add("--multiple-of", type=int, default=1, help="widths that fast kernels take; 16 is a good choice")
    add("--budget", help="filters, parameters or flops: aligned widths may not cost more of it")
    add("--fold-bias", action="store_true", help="compensate for removed channels, for use without fine-tuning")
    add("--out", required=True, help="a .safetensors file")

    def run(options) -> int:
        check_ending(options.out, ".safetensors")
        if options.criterion in NEEDS_DATA:
            raise ValueError(f"criterion {options.criterion!r} needs images: use score(model, ..., batches) in Python")
        model = load_model(options.model)
        scores, rate, multiple_of = score(model, options.criterion), options.rate, options.multiple_of
        if options.budget:
            masks = fit_masks(model, scores, rate, multiple_of, options.budget)
        else:
            masks = keep_masks(scores, rate, multiple_of)
        small, size = prune(model, masks), check_size(model.metadata.get("image_size", 224))
        if options.fold_bias:
            small = fold_bias(model, small, masks, size)
        about = model.metadata | {"pruned": {"rate": rate, "criterion": options.criterion}}
        about.pop("accuracy", None)  # that was the whole network's
        save_model(small, options.out, **about)
        counts = {"parameters": count_parameters, f"FLOPs at {size} px": partial(count_flops, image_size=size)}
        for name, count in counts.items():
            print(f"{name}: {count(model):,} -> {count(small):,} ({count(small) / count(model) - 1:+.1%})")
        print("widths:", *(int(mask.sum()) for mask in masks))
        print(f"written: {options.out}{'' if options.fold_bias else '; fine-tune it before use'}")
        return 0

    return run


def export(add):
    """write a stored network for other programs"""
    add("model", help="a .safetensors file")
    add("out", help="an .onnx, .pt2 (torch.export) or .safetensors (half precision) file")
    add("--image-size", type=int, help="pixels; default: the size it was trained at")

    def run(options) -> int:
        check_ending(options.out, ".onnx", ".pt2", ".safetensors")
        model = load_model(options.model)
        if options.out.endswith(".safetensors"):
            model.metadata.pop("accuracy", None)  # that was in full precision
            save_model(model, options.out, half=True, **model.metadata)
            print(f"written: {options.out}, convolutions and linear layers in half precision")
            return 0
        size = model.metadata.get("image_size") if options.image_size is None else options.image_size
        if size is None:
            raise ValueError(f"{options.model} does not store its image size; give --image-size")
        (export_onnx if options.out.endswith(".onnx") else export_program)(model, options.out, check_size(size))
        print(f"written: {options.out}, input images (batch, 3, {size}, {size}) in [-1, 1], output logits")
        return 0

    return run


COMMANDS = {"figures": figures, "grid": grid, "slim": slim, "prune": prune_stored, "export": export}


def main(arguments: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):  # λ is not in every code page
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    parser = argparse.ArgumentParser("mnv3nb", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, register in COMMANDS.items():
        command = commands.add_parser(name, help=register.__doc__, allow_abbrev=False)
        command.set_defaults(run=register(command.add_argument))
    options = parser.parse_args(arguments)
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if pick_device(getattr(options, "device", None)).type == "cpu":
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            os.environ.setdefault("MNV3NB_WORKERS", str(min(8, cores)))
        return options.run(options)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        code, text = explain(error)
        print(f"mnv3nb {options.command}: {text}", file=sys.stderr)
        return code
    finally:
        signal.signal(signal.SIGTERM, previous)


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and one line for what a user can put right; anything else is a defect and is raised again."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        stopped = isinstance(error, KeyboardInterrupt)
        return (130, "stopped; the same command resumes") if stopped else (143, "terminated; the same command resumes")
    if isinstance(error, ImportError):
        return 2, str(error) if "pip install" in str(error) else f"{error}; pip install -r requirements.txt brings it"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 2, f"{error}; make space, and the same command resumes"
    if isinstance(error, ValueError | OSError | ArithmeticError | RuntimeError):
        return 2, str(error)
    raise error


if __name__ == "__main__":
    sys.exit(main())
