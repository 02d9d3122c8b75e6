"""The commands of mnv3nb: figures, grid, slim, prune and export."""

import argparse
import errno
import os
import signal
import sys
from contextlib import nullcontext

from .costs import count_flops, count_parameters
from .data.datasets import check_size
from .deploy.export import export_onnx, export_program
from .deploy.widths import fit_masks
from .importance import NEEDS_DATA, score
from .networks.checkpoint import load_model, save_model
from .pruning import keep_masks, prune
from .repair import fold_bias
from .runs import grid
from .runs.cluster import connect
from .runs.find_or_train import Runs
from .runs.folder import other_formats
from .runs.profiles import get_profile
from .runs.record import recorder
from .slim.job import Job
from .system.device import pick_device
from .system.files import check_ending


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0; 1 if a notebook failed; 2, 130 or 143 as in `describe_error`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # some code pages have no λ
    options = build_parser().parse_args(arguments)
    previous_handler = signal.signal(signal.SIGTERM, terminate)
    try:
        use_all_cores(options)
        return options.run(options)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        code, text = describe_error(error)
        print(f"mnv3nb {options.command}: {text}", file=sys.stderr)
        return code
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def build_parser() -> argparse.ArgumentParser:
    """Reads the options of all commands; `run` among them is the command's function."""
    parser = argparse.ArgumentParser("mnv3nb", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    add_figures(commands)
    add_grid(commands)
    add_slim(commands)
    add_prune(commands)
    add_export(commands)
    return parser


def add_command(commands, name: str, run, help: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    command.set_defaults(run=run)
    return command


def add_figures(commands) -> None:
    command = add_command(commands, "figures", run_figures, "run the notebooks and draw every figure and table")
    command.add_argument("--profile", default="digits", help="name of a profile, such as cifar (default: digits)")
    command.add_argument("--only", help="run only these notebooks, by their numbers, such as 02,05")
    command.add_argument("--timeout", type=float, default=3600, help="seconds for each notebook (default: 3600)")
    command.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter of the notebooks; may be repeated",
    )


def run_figures(options: argparse.Namespace) -> int:
    # these two come with the packages of the notebooks, which the other commands do without
    import yaml

    from .runs.notebooks import run_notebooks

    parameters = {"profile": options.profile}
    for name, text in options.p:
        try:
            parameters[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"a parameter's value is not a plain number, word or list ({reason})") from error
    failures = run_notebooks(options.only, options.timeout, **parameters)
    for failure in failures:
        print(f"mnv3nb figures: {failure}", file=sys.stderr)
    return 1 if failures else 0


def add_grid(commands) -> None:
    command = add_command(
        commands, "grid", run_grid, "train all missing runs of a profile; restrict them with --seed or --only"
    )
    command.add_argument("--profile", default="digits", help="name of a profile, such as cifar (default: digits)")
    command.add_argument("--only", help="experiments, separated by commas, such as plain_and_sparse,half")
    command.add_argument("--seed", type=int, help="a seed outside the plan gets the runs of the plan's last seed")
    command.add_argument("--device", help="cuda, mps or cpu (default: the first of these that is available)")
    command.add_argument("--scheduler", help="address of a Dask scheduler, such as tcp://host:8786")
    command.add_argument("--record", action="store_true", help="copy each run to results/ as soon as it is finished")
    command.add_argument("--dry-run", action="store_true", help="list what is missing and train nothing")


def run_grid(options: argparse.Namespace) -> int:
    profile = get_profile(options.profile)
    runs = Runs(device=options.device)
    if options.only:
        configs = []
        for name in options.only.split(","):
            configs += profile.experiment(name.strip(), options.seed or 0)
    else:
        configs = profile.planned(options.seed)

    for folder in (runs.recorded, runs.folder):
        others = other_formats(folder)
        if others:
            print(f"{folder}: skipping {len(others)} run(s) of another format: {others[0]} ...", file=sys.stderr)
    missing = grid.plan(runs, configs)
    needed = {config.key for config in configs} | {config.parent.key for config in configs if config.parent}
    print(f"{len(missing)} run(s) missing of {len(needed)}; profile {profile.name}")
    for config in missing:
        print(f"  {config.key}  {config.label}, {config.train.epochs} epochs")
    if options.dry_run:
        return 0

    print("stop at any time: the same command resumes")
    record = recorder(runs, profile, configs) if options.record else None
    with connect(options.scheduler) if options.scheduler else nullcontext() as executor:
        grid.run_grid(runs, configs, executor, record)
    return 0


def add_slim(commands) -> None:
    command = add_command(
        commands,
        "slim",
        run_slim,
        "make a network smaller: takes a network and images, writes a smaller network, its ONNX files and a report",
    )
    command.add_argument("--network", required=True, help="such as torchvision/mobilenet_v3_large")
    command.add_argument("--data", required=True, help="a folder of class folders, an .npz file, digits or cifar10")
    command.add_argument("--out", required=True, help="folder for the results")
    command.add_argument(
        "--weights", help="a .pth file with a state dict, or DEFAULT for pretrained weights (default: random weights)"
    )
    command.add_argument(
        "--criterion", help="prune the given weights by this criterion, without sparse training before"
    )
    command.add_argument("--rate", type=float, help="target: share of filters to remove, in [0, 1) (default: 0.5)")
    command.add_argument(
        "--max-drop", type=float, help="target: percentage points of accuracy on held-out images that may be lost"
    )
    command.add_argument("--latency", type=float, help="target: latency, as a share of the dense network's")
    command.add_argument("--parameters", type=float, help="target: number of parameters, such as 2.3e6")
    command.add_argument(
        "--multiple-of", type=int, default=1, help="round widths to multiples of this; 16 suits most CPUs (default: 1)"
    )
    command.add_argument(
        "--epochs", type=int, default=10, help="epochs of sparse training, and again of fine-tuning (default: 10)"
    )
    command.add_argument("--image-size", type=int, help="pixels (default: the size of the stored images, at least 32)")
    command.add_argument("--batch-size", type=int, default=32, help="images per training step (default: 32)")
    command.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam, annealed to 0 (default: 0.001)")
    command.add_argument("--lam", type=float, help="λ of the sparsity penalty (default: 0.5 / training steps)")
    command.add_argument("--augment", default="crop_flip", help="none, crop or crop_flip (default: crop_flip)")
    command.add_argument(
        "--seed", type=int, default=0, help="of the images' order, the augmentation and new layers (default: 0)"
    )


def run_slim(options: argparse.Namespace) -> int:
    from .slim.stages import slim  # late, because it brings pandas, matplotlib and nbconvert

    folder = slim(job_from(options))
    report = (folder / "report.md").read_text(encoding="utf-8")
    before_picture, _, _ = report.partition("![")
    print(before_picture)
    print(f"written: {folder}; open {folder / 'report.html'}")
    return 0


def job_from(options: argparse.Namespace) -> Job:
    """The job that the options of `slim`, which have the names of its fields, ask for."""
    fields = dict(vars(options))
    del fields["command"]
    del fields["run"]
    return Job(**fields)


def add_prune(commands) -> None:
    command = add_command(commands, "prune", run_prune, "prune a stored network")
    command.add_argument("model", help="a .safetensors file")
    command.add_argument("--rate", type=float, required=True, help="share of filters to remove, in [0, 1)")
    command.add_argument(
        "--criterion", default="gamma_sparsity", help="how filters are ranked (default: gamma_sparsity)"
    )
    command.add_argument(
        "--multiple-of", type=int, default=1, help="round widths to multiples of this; 16 suits most CPUs (default: 1)"
    )
    command.add_argument(
        "--budget", help="filters, parameters or flops: rounded widths may not cost more of these than unrounded ones"
    )
    command.add_argument(
        "--fold-bias", action="store_true", help="compensate for the removed channels if there is no fine-tuning"
    )
    command.add_argument("--out", required=True, help="a .safetensors file")


def run_prune(options: argparse.Namespace) -> int:
    check_ending(options.out, ".safetensors")
    if options.criterion in NEEDS_DATA:
        raise ValueError(f"criterion {options.criterion!r} needs images: use score(model, ..., batches) in Python")
    model = load_model(options.model)
    if options.fold_bias and "image_size" not in model.metadata:
        raise ValueError(f"{options.model} does not store its image size, which --fold-bias needs")
    image_size = check_size(model.metadata.get("image_size", 224))
    scores = score(model, options.criterion)
    if options.budget:
        masks = fit_masks(model, scores, options.rate, options.multiple_of, options.budget, image_size)
    else:
        masks = keep_masks(scores, options.rate, options.multiple_of)
    small = prune(model, masks)
    if options.fold_bias:
        small = fold_bias(model, small, masks, image_size)

    metadata = dict(model.metadata)
    metadata.pop("accuracy", None)  # it was the dense network's
    metadata["pruned"] = {"rate": options.rate, "criterion": options.criterion}
    save_model(small, options.out, **metadata)

    print_change("parameters", count_parameters(model), count_parameters(small))
    print_change(f"FLOPs at {image_size} px", count_flops(model, image_size), count_flops(small, image_size))
    print("widths:", *(int(mask.sum()) for mask in masks))
    if options.fold_bias:
        print(f"written: {options.out}")
    else:
        print(f"written: {options.out}; fine-tune it before use")
    return 0


def print_change(name: str, before: int, after: int) -> None:
    print(f"{name}: {before:,} -> {after:,} ({after / before - 1:+.1%})")


def add_export(commands) -> None:
    command = add_command(commands, "export", run_export, "write a stored network for other programs")
    command.add_argument("model", help="a .safetensors file")
    command.add_argument("out", help="an .onnx, .pt2 (torch.export) or .safetensors (half precision) file")
    command.add_argument("--image-size", type=int, help="pixels (default: the size that the network was trained at)")


def run_export(options: argparse.Namespace) -> int:
    check_ending(options.out, ".onnx", ".pt2", ".safetensors")
    model = load_model(options.model)
    if options.out.endswith(".safetensors"):
        metadata = dict(model.metadata)
        metadata.pop("accuracy", None)  # it was measured in full precision
        save_model(model, options.out, half=True, **metadata)
        print(f"written: {options.out}, convolutions and linear layers in half precision")
        return 0

    image_size = options.image_size
    if image_size is None:
        image_size = model.metadata.get("image_size")
    if image_size is None:
        raise ValueError(f"{options.model} does not store its image size; give --image-size")
    check_size(image_size)
    if options.out.endswith(".onnx"):
        export_onnx(model, options.out, image_size)
    else:
        export_program(model, options.out, image_size)
    print(f"written: {options.out}, input images (batch, 3, {image_size}, {image_size}) in [-1, 1], output logits")
    return 0


def use_all_cores(options: argparse.Namespace) -> None:
    """On a CPU, train runs in as many processes as this one has cores, at most 8, unless $MNV3NB_WORKERS is set."""
    device = pick_device(getattr(options, "device", None))
    if device.type != "cpu":
        return
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))  # those that this process may use
    os.environ.setdefault("MNV3NB_WORKERS", str(min(8, cores)))


def terminate(*_) -> None:
    """Handles SIGTERM: exits through an exception, so that files and processes are cleaned up."""
    sys.exit(143)


def describe_error(error: BaseException) -> tuple[int, str]:
    """Exit code and one line for what a user can put right. Anything else is a defect and is raised again."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped; the same command resumes"
    if isinstance(error, SystemExit):
        return 143, "terminated; the same command resumes"
    if isinstance(error, ImportError):
        text = str(error)
        return 2, text if "pip install" in text else f"{text}; pip install -r requirements.txt installs it"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 2, f"{error}; make space, and the same command resumes"
    if isinstance(error, ValueError | OSError | ArithmeticError | RuntimeError):
        return 2, str(error)
    raise error


if __name__ == "__main__":
    sys.exit(main())
