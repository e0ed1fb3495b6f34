// The Python module vqvae_fast._C, in the part of Python's C API that all versions from 3.10 share.
#include <Python.h>
#include <torch/headeronly/version.h>

#include <stdexcept>

#include "../../build_stamp.h"
#include "../../cpu/dispatch.h"
#include "changes.h"
#include "registration.h"

namespace vqvae_fast {
namespace {

// Runs the body and raises what it throws as a Python exception.
template <class Body>
PyObject* raising(Body body) {
  try {
    return body();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyObject* none() { return Py_NewRef(Py_None); }

PyObject* register_kernels(PyObject*, PyObject*) {
  return raising([] {
    vqvae_fast::register_kernels();
    return none();
  });
}

PyObject* cpu_isa(PyObject*, PyObject*) { return PyUnicode_FromString(instruction_set().name); }

PyObject* available_cpu_isas(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (const InstructionSet* set : available_instruction_sets()) {
    PyObject* name = names == nullptr ? nullptr : PyUnicode_FromString(set->name);
    if (name == nullptr || PyList_Append(names, name) != 0) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

PyObject* set_cpu_isa(PyObject*, PyObject* name) {
  PyObject* bytes = PyUnicode_AsUTF8String(name);  // raises a TypeError if it is no string
  if (bytes == nullptr) return nullptr;
  PyObject* result = raising([&] {
    select_instruction_set(PyBytes_AsString(bytes));
    return none();
  });
  Py_DECREF(bytes);
  return result;
}

PyObject* description(PyObject*, PyObject* tensors) {
  return raising([&] { return describe(tensors); });
}

PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{sssssssl}", "vqvae_fast", kBuiltFor, "torch", TORCH_VERSION, "compiler",
                       __VERSION__, "cxx", long{__cplusplus});
}

PyMethodDef kMethods[] = {
    {"register_kernels", register_kernels, METH_NOARGS,
     "Let these kernels serve torch.ops.vqvae_fast.* on CPU tensors, for good."},
    {"cpu_isa", cpu_isa, METH_NOARGS, "Name of the instruction set in use."},
    {"available_cpu_isas", available_cpu_isas, METH_NOARGS,
     "Names of the instruction sets of this build that this machine has, best first."},
    {"set_cpu_isa", set_cpu_isa, METH_O,
     "Use the named instruction set; ValueError where this machine lacks it."},
    {"description", description, METH_O,
     "(bytes that differ after a change, whether one requires a gradient, whether one has one), "
     "or None for special tensors."},
    {"build_info", build_info, METH_NOARGS, "What this module was built with."},
    {},
};

PyModuleDef kModule = {
    PyModuleDef_HEAD_INIT, "_C", "Compiled kernels of vqvae_fast for CPU tensors.", -1, kMethods,
};

}  // namespace
}  // namespace vqvae_fast

PyMODINIT_FUNC PyInit__C() {
  vqvae_fast::prepare_to_describe();
  return PyModule_Create(&vqvae_fast::kModule);
}
