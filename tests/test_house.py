"""The house stays thin: few rooms, no circle, no way into another's cupboards, short functions with few parameters."""

import ast
import io
import pathlib
import tokenize

import pytest

import genlib

PATHS = sorted(pathlib.Path(genlib.__file__).parent.glob("[!_]*.py"))
TREES = {path.stem: ast.parse(path.read_text()) for path in PATHS}
MANY_KEYWORDS = {("bank", "train"), ("cohorts", "load")}


def imported(tree):
    """Rooms that a module takes from genlib, by the name that it gives them."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "genlib":
            inside = node.module.removeprefix("genlib").lstrip(".")
            names |= {alias.asname or alias.name: inside or alias.name for alias in node.names}
    return {name: room for name, room in names.items() if room in TREES}


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def code_lines(text):
    """Lines that hold code: no comment, no docstring, no blank."""
    lines, statement = set(), []
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            if [one.type for one in statement] != [tokenize.STRING]:
                lines |= {line for one in statement for line in range(one.start[0], one.end[0] + 1)}
            statement = []
        elif token.type not in skipped:
            statement.append(token)
    return lines


def test_there_are_at_most_sixteen_rooms():
    assert len(TREES) <= 16, sorted(TREES)


def test_the_rooms_together_stay_thin():
    assert sum(len(code_lines(path.read_text())) for path in PATHS) <= 4500


def test_no_room_is_reached_from_itself():
    reached = {room: set(imported(tree).values()) - {room} for room, tree in TREES.items()}
    for _ in TREES:
        reached = {room: there | {far for near in there for far in reached[near]} for room, there in reached.items()}
    assert [room for room, there in reached.items() if room in there] == []


@pytest.mark.parametrize("room", TREES)
class TestEveryRoom:
    def test_it_takes_no_private_name_of_another(self, room):
        others = imported(TREES[room])
        taken = [
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(TREES[room])
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in others
            and node.attr.startswith("_")
        ]  # fmt: skip
        assert taken + [name for name in others if name.startswith("_")] == []

    def test_its_functions_have_at_most_eight_parameters(self, room):
        wide = {}
        for node in functions(TREES[room]):
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            count = len([one for one in given if one.arg not in ("self", "cls")])
            if count > 8 and (room, node.name) not in MANY_KEYWORDS:
                wide[node.name] = count
        assert wide == {}

    def test_its_functions_have_at_most_fifty_lines_of_code(self, room):
        (path,) = (path for path in PATHS if path.stem == room)
        code = code_lines(path.read_text())
        long = {
            node.name: count
            for node in functions(TREES[room])
            if (count := len(code & set(range(node.lineno, node.end_lineno + 1)))) > 50
        }
        assert long == {}
