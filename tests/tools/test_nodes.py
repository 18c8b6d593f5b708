"""tools/nodes.py: what it needs. Its scenarios take minutes and root."""

import os
import sys

import nodes
import pytest


def test_without_root_a_line_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    monkeypatch.setattr(sys, "argv", ["nodes.py"])
    with pytest.raises(SystemExit, match="need Linux, root, and ip"):
        nodes.main()
