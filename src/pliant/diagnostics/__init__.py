"""Measures of plasticity: pure functions of the activity of units, and `diagnose`, one table for any network.

features    activity of any shape as (n, units)
health      which units are dead, dormant (three definitions), saturated, linearized
ranks       in how many directions the features vary
weights     how large weights and gradients are
updates     how far a step moves the weights of a unit
diagnosing  all of them, on the units of a model: batches, checkpoints and references find what is measured, watch and
            activations record one forward, trial_step tries a step of the optimizer, measuring computes a group's row
            (rows), diagnosis is the table
monitor     the same while a network trains: in_passing records, alarms says what is worth a word, destinations writes
fresh       networks as a model was before it trained
probe       the definition itself: does the network learn worse than a fresh copy?
"""

from pliant.base.deprecation import renamed
from pliant.diagnostics.diagnosing import diagnose
from pliant.diagnostics.diagnosis import Diagnosis, NetworkDiagnosis
from pliant.diagnostics.features import feature_norm, features
from pliant.diagnostics.health import (
    FLAT_ENDS,
    dead,
    dormant_by_activity,
    dormant_by_firing,
    dormant_by_gradient,
    linearized,
    saturated,
    saturation,
    share_of_layer,
)
from pliant.diagnostics.monitor import Monitor
from pliant.diagnostics.probe import Comparison, Probe, TaskProbe, probe_plasticity
from pliant.diagnostics.ranks import approximate_rank, effective_rank, rank, singular_values, srank, stable_rank
from pliant.diagnostics.rows import GroupDiagnosis
from pliant.diagnostics.updates import stagnant, update_ratio, volatile
from pliant.diagnostics.weights import gradient_norm, weight_magnitude

__all__ = [
    "FLAT_ENDS",
    "Comparison",
    "Diagnosis",
    "GroupDiagnosis",
    "Monitor",
    "NetworkDiagnosis",
    "Probe",
    "TaskProbe",
    "approximate_rank",
    "dead",
    "diagnose",
    "dormant_by_activity",
    "dormant_by_firing",
    "dormant_by_gradient",
    "effective_rank",
    "feature_norm",
    "features",
    "gradient_norm",
    "linearized",
    "probe_plasticity",
    "rank",
    "saturated",
    "saturation",
    "share_of_layer",
    "singular_values",
    "srank",
    "stable_rank",
    "stagnant",
    "update_ratio",
    "volatile",
    "weight_magnitude",
]

__getattr__ = renamed(__name__, {"linearised": "linearized"})
