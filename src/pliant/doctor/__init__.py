"""Is it plasticity, and what now? A diagnosis, a probe and what they suggest, on one page.

findings     measures of a layer that differ from a fresh network's
settings     a first replacement rate and maturity, from width, batch and length of the run
advice       what to try first, tried on copies where that is possible, with the line to paste
examination  what was found, as text, values and one HTML page
examining    `examine`: diagnose, probe, advise
subject      what a user's function gives for a command: model, optimizer, data, loss
"""

from pliant.doctor.examination import Advice, Examination
from pliant.doctor.examining import examine
from pliant.doctor.findings import Finding
from pliant.doctor.settings import first_setting

__all__ = ["Advice", "Examination", "Finding", "examine", "first_setting"]
