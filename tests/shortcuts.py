"""What tests, and the programs that they start, do without: it takes long, and no test could tell."""

import os
from functools import cache
from types import SimpleNamespace

import accelerate.utils.memory
import jinja2

os.fsync = lambda _descriptor: None  # only a power cut would tell, and a busy disk takes long
jinja2.Environment.compile = cache(jinja2.Environment.compile)  # every checkpoint has a card
accelerate.utils.memory.gc = SimpleNamespace(collect=lambda: 0)  # after every training; Python collects by itself too
