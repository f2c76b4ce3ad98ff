"""Settings of the whole test run, made before torch and Ray are imported."""

import os

# Two cores carry several processes here: torch threads that spin for each other cost more than they bring.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
