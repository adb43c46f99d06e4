"""Pictures unlike the normal ones: likelihoods, the corrections they need, thresholds (docs/anomaly.md)."""

from imagegpt.anomaly.detector import Detector as Detector
