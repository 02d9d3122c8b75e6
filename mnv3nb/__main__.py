"""python -m mnv3nb figures | grid | prune | export"""

import argparse
import os
import signal
import sys

from .training import pick_device


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("mnv3nb", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    figures = commands.add_parser("figures", help="run the notebooks and draw every figure and table", allow_abbrev=False)
    figures.add_argument("--profile", default="digits")
    figures.add_argument("--only", help="numbers of notebooks, such as 02,05")
    figures.add_argument("--timeout", type=float, default=3600, help="seconds for each notebook")
    figures.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a notebook's parameter")

    grid = commands.add_parser("grid", help="train a profile's missing runs, the most valuable first", allow_abbrev=False)
    grid.add_argument("--profile", default="digits")
    grid.add_argument("--only", help="experiments, such as table3,fig6")
    grid.add_argument("--seed", type=int, default=0)
    grid.add_argument("--device", help="cuda, mps or cpu")
    grid.add_argument(
        "--record",
        action="store_true",
        help="then copy the runs to results/, with the seed's parent and the networks of seed 0 that figures need, in fp16",
    )
    grid.add_argument("--dry-run", action="store_true", help="only say what is missing")

    prune = commands.add_parser("prune", help="prune a stored network", allow_abbrev=False)
    prune.add_argument("model", help="a .safetensors file")
    prune.add_argument("--rate", type=float, required=True)
    prune.add_argument("--criterion", default="gamma_sparsity")
    prune.add_argument("--multiple-of", type=int, default=1, help="widths that fast kernels take; 16 is a good choice")
    prune.add_argument("--budget", help="filters, parameters or flops: what aligned widths may not cost more of")
    prune.add_argument("--fold-bias", action="store_true", help="keep the constants of removed channels; for use as it is")
    prune.add_argument("--out", required=True, help="a .safetensors file")

    export = commands.add_parser("export", help="write a stored network for other programs", allow_abbrev=False)
    export.add_argument("model", help="a .safetensors file")
    export.add_argument("out", help="an .onnx, .pt2 (torch.export) or .safetensors (half precision) file")
    export.add_argument("--image-size", type=int, help="pixels; default: the size it was trained at")

    options = parser.parse_args(arguments)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        if pick_device(getattr(options, "device", None)).type == "cpu":
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            os.environ.setdefault("MNV3NB_WORKERS", str(min(8, cores)))
        return {"figures": _figures, "grid": _grid, "prune": _prune, "export": _export}[options.command](options)
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        print(f"mnv3nb {options.command}: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"mnv3nb {options.command}: {error}; pip install -r requirements.txt brings all packages", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mnv3nb {options.command}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except SystemExit as stop:
        print(f"mnv3nb {options.command}: terminated; the same command goes on from here", file=sys.stderr)
        return stop.code
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(*_) -> None:
    raise SystemExit(143)


def _figures(options) -> int:
    import yaml

    from .notebooks import run_notebooks

    try:
        parameters = {"profile": options.profile} | {name: yaml.safe_load(value) for name, value in options.p}
    except yaml.YAMLError as error:
        raise ValueError(f"a parameter's value is not a plain number, word or list ({' '.join(str(error).split())})") from error
    failures = run_notebooks(options.only, options.timeout, **parameters)
    for failure in failures:
        print(f"mnv3nb figures: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _grid(options) -> int:
    from .profiles import EXPERIMENTS, get_profile
    from .runs import Runs

    profile = get_profile(options.profile)
    names = [name.strip() for name in options.only.split(",")] if options.only else EXPERIMENTS
    configs = [config for name in names for config in profile.experiment(name, options.seed)]
    runs = Runs(device=options.device)
    missing = runs.plan(configs)
    print(f"{len(missing)} run(s) missing of {len({c.key for c in configs})}; profile {profile.name}, seed {options.seed}")
    for config in missing:
        print(f"  {config.key}  {config.label}, {config.train.epochs} epochs")
    if options.dry_run:
        return 0
    print(f"expected here: about {runs.expected_seconds(configs) / 60:.1f} min; stop at any time, the same command goes on")
    failed = None
    try:
        runs.run_grid(configs)
    except RuntimeError as error:  # some runs diverged: the others are recorded all the same
        failed = error
    if options.record:
        shown = [*profile.experiment("baseline"), *profile.experiment("table5"), profile.pruned_run(0.0)]  # notebook 07
        shipped = {config.key for config in (*shown, profile.sparse_run(seed=options.seed))}
        for config in filter(runs.find, configs):
            runs.record(config, model=config.key in shipped)
    if failed:
        raise failed
    return 0


def _prune(options) -> int:
    from .checkpoint import check_ending, load_model, save_model
    from .complexity import count_flops, count_parameters
    from .importance import NEEDS_DATA, score
    from .pruning import keep_masks, prune

    check_ending(options.out, ".safetensors")
    if options.criterion in NEEDS_DATA:
        raise ValueError(f"criterion {options.criterion!r} needs images, which only Python can give: score(model, ..., batches)")
    model = load_model(options.model)
    masks = keep_masks(score(model, options.criterion), options.rate, options.multiple_of, budget=options.budget)
    small = prune(model, masks, fold_bias=options.fold_bias, image_size=model.metadata.get("image_size", 224))
    model.metadata.pop("accuracy", None)  # that was the whole network's
    save_model(small, options.out, **(model.metadata | {"pruned": {"rate": options.rate, "criterion": options.criterion}}))
    for name, count in (("parameters", count_parameters), ("FLOPs at 224 px", count_flops)):
        print(f"{name}: {count(model):,} -> {count(small):,} ({count(small) / count(model) - 1:+.1%})")
    advice = "" if options.fold_bias else "; fine-tune it before use"
    print(f"widths: {' '.join(map(str, small.widths))}\nwritten: {options.out}{advice}")
    return 0


def _export(options) -> int:
    from .checkpoint import check_ending, export_onnx, export_program, load_model, save_model

    check_ending(options.out, ".onnx", ".pt2", ".safetensors")
    model = load_model(options.model)
    if options.out.endswith(".safetensors"):
        model.metadata.pop("accuracy", None)  # that was in full precision
        save_model(model, options.out, half=True, **model.metadata)
        print(f"written: {options.out}, convolutions and linear layers in half precision")
        return 0
    size = model.metadata.get("image_size") if options.image_size is None else options.image_size
    if size is not None and size < 1:
        raise ValueError(f"--image-size must be at least 1 pixel, got {size}")
    if size is None:
        raise ValueError(f"{options.model} does not say its image size; give --image-size")
    (export_onnx if options.out.endswith(".onnx") else export_program)(model, options.out, size)
    print(f"written: {options.out}, input images (batch, 3, {size}, {size}) in [-1, 1], output logits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
