from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import poe
from poe.diagnostics.convergence import ess, rhat, standard_errors
from poe.diagnostics.evidence import Diagnostics, diagnose
from poe.diagnostics.verdict import reasons
from poe.diagnostics.weights import pareto_k, pareto_smoothed, weight_ess
from tests.poe.targets import Gauss


