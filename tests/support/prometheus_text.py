"""A parser of Prometheus' text format 0.0.4 that accepts what its specification says, and nothing else."""

from __future__ import annotations

import re

_NAME, _LABEL = r"[a-zA-Z_:][a-zA-Z0-9_:]*", r"[a-zA-Z_][a-zA-Z0-9_]*"
_VALUE = r'"((?:[^"\\\n]|\\[\\n"])*)"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{((?:{_LABEL}={_VALUE},?)*)\}})? (\S+)")
_PAIR = re.compile(rf"({_LABEL})={_VALUE}(?:,|$)")
_FLOAT = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|NaN|[+-]Inf", re.IGNORECASE)
_UNESCAPED = {r"\\": "\\", r"\n": "\n", r"\"": '"'}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> Samples:
    """Parse the text format, strictly: each line one of its three forms, metrics in one block after HELP and TYPE."""
    assert text.endswith("\n")
    text.encode("utf-8")
    samples: Samples = {}
    typed: list[str] = []
    helped: list[str] = []
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            name, _, help_text = line.removeprefix("# HELP ").partition(" ")
            assert re.fullmatch(_NAME, name)
            assert help_text
            assert not re.search(r"\\(?![\\n])", help_text)
            assert name not in helped
            helped.append(name)
            continue
        if line.startswith("# TYPE "):
            name, kind = line.removeprefix("# TYPE ").split(" ")
            assert kind in ("counter", "gauge", "histogram", "summary", "untyped")
            assert name == helped[-1]
            assert name not in typed
            typed.append(name)
            continue
        found = _SAMPLE.fullmatch(line)
        assert found is not None, line
        name, labels, value = found[1], found[2] or "", found[4]
        assert name == typed[-1], "a sample outside of its metric's block"
        assert _FLOAT.fullmatch(value), value
        pairs = _PAIR.findall(labels)
        assert _PAIR.sub("", labels) == ""
        assert len({label for label, _ in pairs}) == len(pairs)
        key = tuple(
            sorted((label, re.sub(r"\\.", lambda match: _UNESCAPED[match[0]], raw)) for label, raw in pairs)
        )
        assert (name, key) not in samples, "a sample twice"
        samples[name, key] = float(value.replace("Inf", "inf"))
    return samples


def of(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"ckptstore_{name}", tuple(sorted(labels.items()))))
