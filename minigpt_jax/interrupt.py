"""The former place of runtime/interrupt.py, for programs that import `Interrupt` from here."""

from minigpt_jax.runtime.interrupt import Interrupt as Interrupt
