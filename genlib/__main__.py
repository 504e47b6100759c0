"""Run the study and print a short answer, or do what another command names.

  judge        say whether one trained model of your own may be shared (notebook your_model); judge --help lists options
  verify       run quick anew and compare every row of its results with outputs/reference
  cost         measure times on this machine (notebook 11_cost), a quarter of an hour
  sharp-edges  show faults and traps of the tools, each with a reproduction (notebook 12_sharp_edges), a minute
  test         run the tests; further words go to pytest, as: ./run_all.sh test -k cohorts
  lab          open JupyterLab on the notebooks

Paths count from where the command is called. Several cohorts, networks or seeds, separated by commas, are as many runs,
several at a time, which notebook 10 then compares. A run that was stopped goes on where it was: give the same command.
The first run installs about 3 GB into .venv, or into the active conda environment made from environment.yml.
GENLIB_DATA names the folder for downloaded cohorts; by default the platform's cache folder.
"""

# The lines above are what --help prints. Nothing here needs a package: help is there before any is installed.

import argparse
import pathlib
import sys

NOTEBOOKS = pathlib.Path(__file__).resolve().parent.parent / "notebooks"
COMMANDS = ("study", "judge", "verify", "cost", "sharp-edges")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message} (./run_all.sh --help)\n")


def parser(command="study", where="run_all.sh"):
    """Make the one list of options; a sweep file takes them by the same names, with ``_`` for ``-``."""
    raw, usage = argparse.RawDescriptionHelpFormatter, "./run_all.sh [COMMAND] [OPTIONS]"
    made = _Parser(where, usage, __doc__, formatter_class=raw, allow_abbrev=False)
    add = made.add_argument
    if command != "verify":
        add("--run", metavar="NAME", help="folder below outputs/; by default COHORT-PROFILE and what differs")
    of_command = {"study": _of_study, "judge": _of_judge}.get(command)
    if not of_command:
        return made
    of_command(add)
    add = made.add_argument_group("the cohort").add_argument
    says = (
        "tcga-brca (default), tcga-brca-histology, tcga-kipan, tcga-lgg, tcga-paad, tcga-pancan (1.9 GB), simulated, "
    )
    says += "one of your own registry, a .csv, .tsv, .parquet or .h5ad file, a cBioPortal study folder, or a matrix"
    add("--cohort", required=command == "judge", help=says)
    add("--label", metavar="COLUMN", help="column of your file that holds each patient's class")
    add("--clinical", metavar="FILE", help="table that holds the label of a matrix of genes x samples")
    add("--patient", metavar="COLUMN", help="column that says whose sample a row is")
    add("--sample", metavar="COLUMN", help="column of the clinical table that names the samples; found by itself")
    add("--site", metavar="COLUMN", help="column of hospitals")
    add("--several", metavar="HOW", help="what several samples of a patient become: first or mean")
    add("--unmatched", metavar="drop", help="leave out samples that the clinical table does not name")
    add("--units", help="linear, where the values are no logarithms; ln; log2")
    add("--layer", help="layer of an .h5ad file to read, or raw")
    add("--drop-constant-genes", metavar="True", help="leave out genes with one value in all patients")
    add("--ignore", metavar="COLUMN", nargs="+", help="columns that are neither genes nor the label")
    add("--missing", metavar="WORD", nargs="*", help="words that stand for a missing label, instead of the usual ones")
    add("--drop-classes", metavar="CLASS", nargs="+", help="classes to leave out, with their patients")
    add("--min-class-size", metavar="NUMBER", type=int, help="a class with fewer patients is an error; 10 by default")
    add("--cohort-options", metavar="YAML", help="more of it, as '{n_patients: 500}' of a simulated one")
    return made


def _of_study(add):
    profiles = sorted(path.stem for path in NOTEBOOKS.glob("*.yaml"))
    says = "smoke: simulated, some minutes; quick (default): real patients, about a quarter of an hour; full: a night"
    add("--profile", default="quick", choices=profiles, help=says)
    add("--network", help="mlp (default), softmax, cnn or deeptype; or a function of your own, my_models.py:build")
    add("--network-options", metavar="YAML", help="changes of network and training, as '{epochs: 50}'")
    add("--seed", help="0 by default; the same seed gives the same results on the same platform")
    add("--panel", help="published genes for some models: pam50 (of TCGA-BRCA), FILE.gmt, FILE.gmt#SET, or none")
    add("--from", metavar="NOTEBOOK", help="start at this notebook, as 02; those before are finished")
    add("--only", metavar="NOTEBOOK", nargs="+", help="run these notebooks alone, as 02,03")
    add("--sweep", metavar="FILE", help="many runs: a YAML file of these options, where each cohort may have its own")
    add("--scheduler", metavar="ADDRESS", help="a Dask scheduler, whose workers take the runs of a sweep")


def _of_judge(add):
    add("--model", metavar="FILE", required=True, help=".keras or .h5, or its folder, with genes.txt and classes.txt")
    add("--members", metavar="FILE", required=True, help="who trained it: a patient a line, named as in the cohort")
    says = "what it takes in: log2 values, each patient's rank scores of them (default), or unit profiles"
    add("--kind", choices=("rank", "log2", "unit"), help=says)
    add("--accuracy", metavar="SHARE", type=float, help="on patients who did not train it, as you know it: 0.85")
    add("--epochs", metavar="NUMBER", type=int, help="of its training, for shadow models; 30 by default")
    add("--batch-size", metavar="NUMBER", type=int, help="of its training, for shadow models; 32 by default")
    add("--center", action="store_true", default=None, help="its training took the members' mean off")
    add("--n-shadow-models", metavar="NUMBER", type=int, help="64 by default; 0 for none")
    add("--tolerance", metavar="SHARE", type=float, help="of members that may be found; 0.03 by default")
    add("--name-patients", metavar="FILE", help="list the patients by score there, outside of outputs/")
    add("--seed", metavar="NUMBER", type=int, help="0 by default")


def parse(words=None, where="run_all.sh"):
    """Read a command line, by default of this process; a wrong one ends with status 2 and a line that begins `where`.

    Returns
    -------
    argparse.Namespace
        The options, and `command`.

    Examples
    --------
    >>> parse(["verify"]).command, parse(["--only", "02,03"]).only
    ('verify', ['02,03'])
    """
    words = list(sys.argv[1:] if words is None else words)
    command = words.pop(0) if words and not words[0].startswith("-") else "study"
    made = parser(command, where)
    if command not in COMMANDS:
        made.error(f"unknown command '{command}'; choose {', '.join(COMMANDS)}, test or lab")
    options = made.parse_args(words, argparse.Namespace(command=command))
    for name, value in vars(options).items():
        if value == "":
            made.error(f"--{name.replace('_', '-')} needs a value that is not empty")
    return options


def main():
    """Run the command line."""
    options = parse()
    from genlib import run

    run.main(options)


if __name__ == "__main__":
    main()
