"""``python -m experiments study``: check one claim of the papers on real images and write the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convsmith.cli.shell import terminal
from convsmith.cli.shell.options import Listing, option
from convsmith.errors import InvalidArgument
from convsmith.files import write_text

EXAMPLES = ("study", "study redundancy/arithmetic", "study all --quick", "study pooling/power --seeds 5 --again")


@dataclass(frozen=True, kw_only=True)
class Arguments(Listing):
    """Run one study, or all, to its verdict; without a name, list them. A stopped study goes on where it was."""

    study: str | None = option(None, "a study's name, or all", positional=True, metavar="NAME")
    quick: bool = option(False, "the small form: fewer seeds and updates; the result says so")
    seeds: int | None = option(None, "number of seeds (default: the study's own)", metavar="N")
    device: str = option("cpu", "cpu, cuda, cuda:N", metavar="NAME")
    out: str = option("runs/studies", "folder for the JSON and the page results.html", metavar="DIR")
    again: bool = option(False, "run even what is finished")


def run(arguments: Arguments) -> dict[str, Any]:
    """Run studies, print the verdicts, write JSON and ``results.html``."""
    from convsmith.errors import require
    from convsmith.training import resolve_device
    from experiments import studies

    if arguments.study is None:
        rows = [[entry.name, entry.traits["claim"]] for entry in studies.STUDIES]
        terminal.table(["study", "claim"], rows)
        return {"studies": studies.STUDIES.names()}
    every = arguments.study == "all"
    names = studies.STUDIES.names() if every else [studies.STUDIES.entry(arguments.study).name]
    if arguments.seeds is not None and arguments.seeds < 1:
        raise InvalidArgument("there must be at least one seed", argument="--seeds", given=arguments.seeds)
    resolve_device(arguments.device)
    for name in names:
        for extra in studies.STUDIES.entry(name).traits["extras"]:
            require(_MODULES[extra], extra)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    found = _all(names, out, arguments)
    terminal.table(["study", "verdict", "what was measured"], [[v["study"], v["verdict"], v["summary"]] for v in found])
    page = out / "results.html"
    from experiments.studies.page import finished, results_html

    write_text(page, results_html(finished(out)))
    terminal.say(f"results: {page}")
    return {"results": str(page), "verdicts": {v["study"]: v["verdict"] for v in found}}


#: the module by which an extra of a study is recognised
_MODULES = {"demo": "mlxtend", "attacks": "art", "compress": "torch_pruning", "onnx": "onnxruntime"}


def _all(names: list[str], out: Path, arguments: Arguments) -> list[dict[str, Any]]:
    from convsmith.cli.shell.progress import progress
    from experiments import studies

    found = []
    try:
        for number, name in enumerate(names, 1):
            with progress(f"{name} ({number}/{len(names)})" if len(names) > 1 else name) as callback:
                value = studies.run_study(
                    name,
                    quick=arguments.quick,
                    seeds=arguments.seeds,
                    device=arguments.device,
                    results=out,
                    again=arguments.again,
                    progress=callback,
                )
            terminal.say(f"{name}: {value['verdict']}")
            found.append(value)
    except KeyboardInterrupt:
        again = f"python -m experiments study {arguments.study} --out {arguments.out} --device {arguments.device}"
        again += " --quick" * arguments.quick + (f" --seeds {arguments.seeds}" if arguments.seeds else "")
        done = f"{len(found)} of {len(names)} studies are finished; the cells of the open one are kept"
        raise KeyboardInterrupt(f"{done}\n  go on with: {again}") from None
    return found
