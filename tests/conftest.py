import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.methods.promises", "tests.methods.runs")
torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # an example may take as long as it takes
