"""The network as one graph without Python around it: for `torch.export` and ONNX Runtime."""

from alignzeg.exporting.files import Exported, export_graph
from alignzeg.exporting.graph import ProposalGraph

__all__ = ["Exported", "ProposalGraph", "export_graph"]
