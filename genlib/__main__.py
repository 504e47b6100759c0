"""The command, ``python -m genlib``: what it takes. Needs no package, so that help is there before any is installed."""

import argparse
import pathlib
import sys

NOTEBOOKS = pathlib.Path(__file__).resolve().parent.parent / "notebooks"
COMMANDS = ("study", "judge", "verify", "cost", "sharp-edges")
HELP = """Run the study, and print a short answer. Or another command:
  judge        say whether one trained model of your own may be shared (notebook your_model), some minutes
  verify       run quick anew and compare every row of its results with outputs/reference
  cost         measure times on this machine (notebook 11_cost), a quarter of an hour
  sharp-edges  show faults and traps of the tools, each with a reproduction (notebook 12_sharp_edges), a minute
  test         run the tests; further words go to pytest, as: ./run_all.sh test -k cohorts
  lab          open JupyterLab on the notebooks
"""
EPILOG = """
Paths count from where the command is called. Several cohorts, networks or seeds, separated by commas, are as many runs,
several at a time, which notebook 10 then compares. A run that was stopped goes on where it was: give the same command.
The first run installs about 3 GB into .venv, or into the active conda environment made from environment.yml.
GENLIB_DATA names the folder for downloaded cohorts; by default the platform's cache folder.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line, without the usage."""
        self.exit(2, f"run_all.sh: {message} (./run_all.sh --help)\n")


def parser():
    """Make the one list of options; a sweep file takes them by the same names, with ``_`` for ``-``."""
    made = _Parser(
        usage="./run_all.sh [COMMAND] [OPTIONS]", description=HELP, epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = made.add_argument
    profiles = sorted(path.stem for path in NOTEBOOKS.glob("*.yaml"))
    says = (
        "smoke: simulated, some minutes; quick (default): real patients, at most 15 minutes on 2 cores; full: a night"
    )
    add("--profile", default="quick", choices=profiles, help=says)
    add("--network", help="mlp (default), softmax, cnn or deeptype; or a function of your own, my_models.py:build")
    says = "what to change of network and training, as '{learning_rate: 0.05, epochs: 50}'"
    add("--network-options", metavar="YAML", help=says)
    add("--seed", help="0 by default; the same seed gives the same results on the same platform")
    says = "published genes that some models train on: pam50 (default of TCGA-BRCA), FILE.gmt, FILE.gmt#SET, or none"
    add("--panel", help=says)
    add("--run", metavar="NAME", help="folder of results below outputs/; by default COHORT-PROFILE and what differs")
    add("--from", dest="from", metavar="NOTEBOOK", help="start at this notebook, as 02; those before are finished")
    add("--only", metavar="NOTEBOOKS", help="run these notebooks alone, as 02,03")
    add("--sweep", metavar="FILE", help="many runs: a YAML file of these options, where each cohort may have its own")
    add("--scheduler", metavar="ADDRESS", help="a Dask scheduler, whose workers take the runs of a sweep")
    of_cohort = made.add_argument_group("the cohort")
    add = of_cohort.add_argument
    says = "tcga-brca (default), tcga-kipan, tcga-lgg, tcga-pancan (1.9 GB to fetch), simulated, a name of your own "
    says += "registry, a .csv, .tsv, .parquet or .h5ad file, a cBioPortal study folder, or a matrix of genes x samples"
    add("--cohort", help=says)
    add("--label", metavar="COLUMN", help="column of your file that holds each patient's class")
    add("--clinical", metavar="FILE", help="table that holds the label of a matrix of genes x samples")
    add("--patient", metavar="COLUMN", help="column that says whose sample a row is")
    add("--sample", metavar="COLUMN", help="column of the clinical table that names the samples; found by itself")
    add("--site", metavar="COLUMN", help="column of hospitals")
    add("--several", metavar="HOW", help="what several samples of a patient become: first or mean")
    add("--unmatched", metavar="drop", help="leave out samples that the clinical table does not name")
    add("--units", help="linear, where the values are no logarithms; log2")
    add("--layer", help="layer of an .h5ad file to read, or raw")
    add("--drop-constant-genes", metavar="True", help="leave out genes with one value in all patients")
    add("--ignore", metavar="COLUMN", nargs="+", help="columns that are neither genes nor the label")
    add("--missing", metavar="WORD", nargs="*", help="words that stand for a missing label, instead of the usual ones")
    add("--drop-classes", metavar="CLASS", nargs="+", help="classes to leave out, with their patients")
    add("--min-class-size", metavar="NUMBER", help="a class with fewer patients is an error; 10 by default")
    of_judge = made.add_argument_group("judge, which takes a cohort, --run and --seed as well")
    add = of_judge.add_argument
    add("--model", metavar="FILE", help=".keras or .h5 with genes.txt and classes.txt beside it; or their folder")
    add("--members", metavar="FILE", help="who trained it: a patient a line, named as in the cohort")
    add("--kind", help="what the model takes in: rank (default: normal scores of each patient's ranks), log2 or unit")
    add("--accuracy", metavar="SHARE", help="its accuracy on other patients as you know it, as 0.85")
    add("--epochs", metavar="NUMBER", help="of its training, for shadow models; 30 by default")
    add("--batch-size", metavar="NUMBER", help="of its training, for shadow models; 32 by default")
    add("--n-shadow-models", metavar="NUMBER", help="64 by default; 0 for none")
    says = "largest share of members that may be found where 1 of 100 others is accused; 0.03 by default"
    add("--tolerance", metavar="SHARE", help=says)
    add("--name-patients", metavar="FILE", help="write the patients by score there, outside of outputs/")
    made.of_cohort, made.of_judge = ([one.dest for one in group._group_actions] for group in (of_cohort, of_judge))
    return made


def parse(words=None):
    """Read a command line.

    Parameters
    ----------
    words : list of str, optional
        Those of this process by default.

    Returns
    -------
    argparse.Namespace
        The options, and `command`.

    Raises
    ------
    SystemExit
        With status 2 and one line for what is not known; with 0 after help.

    Examples
    --------
    >>> parse(["verify"]).command, parse(["--only", "02,03"]).only
    ('verify', '02,03')
    """
    words, made = list(sys.argv[1:] if words is None else words), parser()
    command = words.pop(0) if words and not words[0].startswith("-") else "study"
    if command not in COMMANDS:
        made.error(f"unknown command '{command}'; choose {', '.join(COMMANDS)}, test or lab")
    options = made.parse_args(words)
    takes = {"judge": (*made.of_cohort, *made.of_judge, "run", "seed"), "cost": ("run",), "sharp-edges": ("run",)}
    for name, value in list(vars(options).items()):
        word = f"--{name.replace('_', '-')}"
        if value == "":
            made.error(f"{word} needs a value that is not empty")
        known = name not in made.of_judge if command == "study" else name in takes.get(command, ())
        if value != made.get_default(name) and not known:
            made.error(f"{command} takes no {word}")
        if command == "judge" and name in ("model", "members", "cohort") and value is None:
            made.error(f"judge needs {word}")
        if command != "judge" and name in made.of_judge:
            delattr(options, name)
    options.command = command
    return options


def main():
    """Run the command line."""
    options = parse()
    from genlib import run

    run.main(options)


if __name__ == "__main__":
    main()
