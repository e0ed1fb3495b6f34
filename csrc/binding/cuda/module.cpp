// The Python module vqvae_fast._cuda. Loading it defines the ops of ops.cpp.
#include <Python.h>
#include <cuda_runtime_api.h>
#include <torch/headeronly/version.h>

#include <string>

#include "../../build_stamp.h"
#include "../../cuda/search.h"

namespace vqvae_fast {
namespace {

PyObject* build_info(PyObject*, PyObject*) {
  const std::string cuda =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  return Py_BuildValue("{ssssssss}", "vqvae_fast", kBuiltFor, "torch", TORCH_VERSION, "cuda",
                       cuda.c_str(), "archs", compiled_for());
}

PyMethodDef kMethods[] = {
    {"build_info", build_info, METH_NOARGS, "What this module was built with."},
    {},
};

PyModuleDef kModule = {
    PyModuleDef_HEAD_INIT,
    "_cuda",
    "CUDA kernels of vqvae_fast, as torch.ops.vqvae_fast_cuda.",
    -1,
    kMethods,
};

}  // namespace
}  // namespace vqvae_fast

PyMODINIT_FUNC PyInit__cuda() { return PyModule_Create(&vqvae_fast::kModule); }
