"""Writes small .tflite files, tensor by tensor, with the schema that the package ai-edge-litert brings.

No TensorFlow is needed, and so every operator can be written that the runtime has, not only what a converter emits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

TYPES = {"int8": "INT8", "int16": "INT16", "int32": "INT32", "float32": "FLOAT32"}


class TfliteFile:
    """One subgraph under construction."""

    def __init__(self):
        from ai_edge_litert import schema_py_generated as schema  # pyright: ignore[reportMissingImports]

        self.schema = schema
        self.tensors: list[Any] = []
        self.buffers = [schema.BufferT()]  # by convention the first one is empty
        self.operators: list[Any] = []
        self.codes: list[Any] = []

    def tensor(
        self,
        shape: Sequence[int],
        dtype: str,
        *,
        scale: Any = None,
        zero: int = 0,
        axis: int = 0,
        data: np.ndarray | None = None,
        variable: bool = False,
    ) -> int:
        """Adds a tensor, constant if it has data, and returns its number."""
        schema = self.schema
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.isVariable = f"t{len(self.tensors)}", list(shape), variable
        tensor.type = getattr(schema.TensorType, TYPES[dtype])
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            quantization: Any = schema.QuantizationParametersT()
            quantization.scale, quantization.zeroPoint = scales, np.full(len(scales), zero, np.int64)
            quantization.quantizedDimension = axis
            tensor.quantization = quantization
        if data is not None:
            buffer: Any = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data, dtype).tobytes(), np.uint8)
            tensor.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        *,
        options: str = "",
        intermediates: Sequence[int] = (),
        version: int = 1,
        **fields: Any,
    ) -> None:
        """Adds an operator: `name` as in the schema's BuiltinOperator, `options` its table, `fields` what is in it."""
        schema = self.schema
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
        code.version = version
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.codes)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if intermediates:
            operator.intermediates = list(intermediates)
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, options + "T")()
            for field, value in fields.items():
                setattr(operator.builtinOptions, field, value)
        self.codes.append(code)
        self.operators.append(operator)

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The file's bytes."""
        import flatbuffers  # pyright: ignore[reportMissingImports]

        graph = self.schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = list(inputs), list(outputs)
        model = self.schema.ModelT()
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], self.buffers, self.codes
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def run(model: bytes, kernels: str, *arrays: np.ndarray) -> np.ndarray:
    """The first output of a model for inputs, from kernels "BUILTIN_REF", "BUILTIN", ... (OpResolverType)."""
    from ai_edge_litert.interpreter import (  # pyright: ignore[reportMissingImports]
        Interpreter,
        OpResolverType,
    )

    interpreter = Interpreter(
        model_content=model, experimental_op_resolver_type=getattr(OpResolverType, kernels), num_threads=1
    )
    interpreter.allocate_tensors()
    interpreter.reset_all_variables()
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
