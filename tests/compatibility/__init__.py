"""Files that earlier versions of this project wrote must keep working.

c5b4eae.tar.xz was written by that commit. It holds a run stopped at step 6 of 12 (context 32,
2 layers, width 2), its token shards, packed conversations, a folder whose preparation was killed,
an export, and golden.json: what that commit itself computed from them.
"""

from pathlib import Path

ARCHIVE = Path(__file__).parent / "c5b4eae.tar.xz"
# The settings of the old run that differ from tests.harness.TINY, as keywords of its functions.
OLD_SETTINGS = {
    "model__heads": 1,
    "model__embed": 2,
    "eval__every": 6,
    "eval__samples": 1,
    "save__every": 6,
    "save__keep": 1,
    "log__tensorboard": False,
}
