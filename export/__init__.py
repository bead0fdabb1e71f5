"""From a DiffBodyPipeline to a bundle: one list of stages, each as a graph of ONNX and an engine of TensorRT."""
