"""What the fork server has done once for all programs: slow imports, and what libraries prepare at their first use."""

import gc

import datasets  # noqa: F401
import matplotlib.figure
import matplotlib.pyplot
import peft  # noqa: F401
import shortcuts  # noqa: F401
from PIL import Image
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import jscpt_peft.evaluation.style
import jscpt_peft.training

jscpt_peft.evaluation.style.DOTS_PER_INCH = 30  # drawn, but of a size that nobody looks at,
matplotlib.figure.Figure.set_layout_engine = lambda *_, **__: None  # and not laid out, which takes as long again
Image.init()
get_checkpoint_conversion_mapping("clip")
gc.collect()
gc.freeze()  # what is here stays: no program looks through it again
