// The Python module gankernels._C. Importing it registers the operators of all bindings; its own
// functions are for gankernels.info, for tests, and for giving memory back.
#include <Python.h>

#include "cpu/pool.h"
#include "cpu/vector_kernels.h"

namespace {

PyObject* isa(PyObject*, PyObject*) {
  return PyUnicode_FromString(gankernels::cpu::isa());
}

PyObject* set_isa(PyObject*, PyObject* name) {
  PyObject* bytes = PyUnicode_AsASCIIString(name);
  if (!bytes) return nullptr;
  const char* text = PyBytes_AsString(bytes);
  const bool known = text && gankernels::cpu::set_isa(text);
  Py_DECREF(bytes);
  return PyBool_FromLong(known);
}

PyObject* empty_cache(PyObject*, PyObject*) {
  return PyLong_FromSize_t(gankernels::pool::empty());
}

PyMethodDef methods[] = {
    {"isa", isa, METH_NOARGS, "The instruction set of the CPU kernels."},
    {"set_isa", set_isa, METH_O, "For tests: choose it; False where the processor lacks it."},
    {"empty_cache", empty_cache, METH_NOARGS, "Free the recycled buffers; returns the bytes."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  return PyModule_Create(&definition);
}
