"""The study's tables as Markdown, CSV and LaTeX."""

import re
import shutil
import subprocess
from itertools import zip_longest

import pytest

from tests.comparison.tabled import make_run, rows_of_csv, tables_of, to_latex, to_markdown


@pytest.fixture(scope="module")
def mixed_root(tmp_path_factory):
    """Cells with none, one, two and several runs, some with notes, and one of an awkward name."""
    root = tmp_path_factory.mktemp("mixed")
    for seed in range(3):
        make_run(root, f"seed_{seed}", "mae_64", f"run.seed={seed}", results={"rfid": 41.0 + seed})
    make_run(root, "short", "mae_64", "training.max_steps=400", results={"rfid": 150.0})
    make_run(root, r"50%_of|a #1 & {b}$~^\_<i>*", "dino_64", "losses.lpips=0", results={"codebook": 0.25})
    make_run(root, "vq", "vqgan", results={"rfid": 27.0})
    return root


def test_markdown_is_a_table_with_its_notes_and_commands(mixed_root):
    for table in tables_of(mixed_root):
        text = to_markdown(table)
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len(lines) == 2 + len(table.rows)
        assert {line.count(" | ") for line in (lines[0], *lines[2:])} == {3 * len(table.columns)}
        for row, line in zip(table.rows, lines[2:]):
            texts = [each.strip() for each in line.strip("|").split("|")]
            assert texts[0] == row.name
            for place, cell in enumerate(row.cells):
                ours, study, difference = texts[3 * place + 1 : 3 * place + 4]
                candidates = cell.candidates if cell else []
                assert study == (cell.study_text if cell else "")
                assert [each for each in difference.split("<br>") if each] == [
                    each.difference_text for each in candidates if each.difference_text
                ]
                assert (ours == "") == (candidates == [])
                for part, each in zip(ours.split("<br>"), candidates):
                    assert part.startswith(each.text)
                    assert (f"<sup>{each.mark}</sup>" in part) == bool(each.notes or len(candidates) > 1)
                    assert (each.origin in part) == (len(candidates) > 1)
                for command in cell.commands if cell else []:
                    assert f"  - `{command}`\n" in text
        for mark, _ in table.notes:
            assert f"\n- {mark}: " in text
    assert "<i>" not in text


def test_csv_has_a_line_for_every_candidate_and_empty_cell(mixed_root):
    for table in tables_of(mixed_root):
        lines = rows_of_csv(table)
        cells = [cell for row in table.rows for cell in row.cells if cell]
        assert len(lines) == sum(max(1, len(cell.candidates)) for cell in cells)
        for line in lines:
            assert (line["ours"] == "") == (line["n"] == "0")
            if line["n"] == "0":
                assert line["commands"] and not line["run"]
    (line,) = [
        line for line in rows_of_csv(tables_of(mixed_root)[3]) if line["row"] == "DINO" and line["run"]
    ]
    assert line["run"] == r"50%_of|a #1 & {b}$~^\_<i>*"
    assert line["differs"] == "losses.lpips 0.0, not 1.0"


def values_of(rows):
    """Our value and its difference in every third column of LaTeX rows; None where there is none."""
    signs = {r"\\": "", r"\%": "%", r"$\pm$": "±", "$-$": "−"}
    values = []
    for row in rows:
        for written, read in signs.items():
            row = row.replace(written, read)
        texts = [each.strip() for each in re.sub(r"\\textsuperscript\{\w+\}", "", row).split(" & ")]
        values.append([(ours, diff) if ours else None for ours, diff in zip(texts[1::3], texts[3::3])])
    return values


def test_latex_is_a_booktabs_table(mixed_root):
    for table in tables_of(mixed_root):
        text = to_latex(table)
        source = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
        assert "\\usepackage{booktabs}" in text.splitlines()[0]

        opened = []
        for kind, environment in re.findall(r"\\(begin|end)\{(\w+)\}", source):
            if kind == "begin":
                opened.append(environment)
            else:
                assert opened.pop() == environment
        assert opened == []
        places = [source.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")]
        assert places == sorted(places) and "\\hline" not in source

        columns = 1 + 3 * len(table.columns)
        assert re.search(r"\\begin\{tabular\}\{@\{\}(\w+)@\{\}\}", source)[1] == "l" + "r" * (columns - 1)
        body = source[places[0] : places[2]]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        expected = sum(max([1, *(len(cell.candidates) for cell in row.cells if cell)]) for row in table.rows)
        assert len(rows) == 2 + expected
        assert values_of(rows[2:]) == [
            [each and (each.text, each.difference_text) for each in line]
            for row in table.rows
            for line in list(zip_longest(*(cell.candidates if cell else [] for cell in row.cells)))
            or [[None] * len(row.cells)]
        ]
        for row in rows:
            spanned = sum(int(count) - 1 for count in re.findall(r"\\multicolumn\{(\d)\}", row))
            assert len(re.findall(r"(?<!\\)&", row)) + 1 + spanned == columns, row

        # Outside the row ends: nothing that is special to TeX and isn't escaped
        plain = re.sub(r"\\\\$", "", source, flags=re.M)
        plain = re.sub(r"\\[a-z]+|\\[&%$#_{}]", "", plain).replace("$-$", "").replace("$$", "")
        assert not re.search(r"[\\%#$_~^<>|\"]", plain), plain
        depth = 0
        for character in plain:
            depth += {"{": 1, "}": -1}.get(character, 0)
            assert depth >= 0
        assert depth == 0
        assert source.isascii()
        for cell in (cell for row in table.rows for cell in row.cells if cell):
            for command in cell.commands:
                assert f"\n%   {command}\n" in text


def test_characters_beyond_ascii_are_replaced_for_tex(tmp_path):
    make_run(tmp_path, "läuft 走る", "mae_64", "losses.lpips=0", results={"rfid": 40.0})
    assert "l?uft ??: losses.lpips 0.0, not 1.0" in to_latex(tables_of(tmp_path)[2])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(mixed_root, tmp_path):
    tables = "\n".join(map(to_latex, tables_of(mixed_root)))
    document = (
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + tables + "\\end{document}\n"
    )
    (tmp_path / "tables.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
