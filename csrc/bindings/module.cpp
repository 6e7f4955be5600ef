// The Python modules gankernels._C and gankernels._C_cuda. Importing one registers its implementations
// of all operators; functions are for gankernels.info, for tests, and for giving memory back.
#include <Python.h>

#include <vector>

#include "cpu/memory/pool.h"
#include "cpu/simd/isa.h"

namespace {

#if defined(GANKERNELS_CUDA)

#define GANKERNELS_MODULE _C_cuda
PyMethodDef methods[] = {{nullptr, nullptr, 0, nullptr}};

#else

#define GANKERNELS_MODULE _C

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

PyObject* isas(PyObject*, PyObject*) {
  const std::vector<const char*> names = gankernels::cpu::isas();
  PyObject* tuple = PyTuple_New(static_cast<Py_ssize_t>(names.size()));
  for (size_t i = 0; tuple && i < names.size(); ++i) {
    PyObject* name = PyUnicode_FromString(names[i]);
    if (!name || PyTuple_SetItem(tuple, static_cast<Py_ssize_t>(i), name) != 0) Py_CLEAR(tuple);
  }
  return tuple;
}

PyObject* empty_cache(PyObject*, PyObject*) {
  return PyLong_FromSize_t(gankernels::pool::empty());
}

PyObject* pool_stats(PyObject*, PyObject*) {
  const gankernels::pool::Stats s = gankernels::pool::stats();
  return Py_BuildValue("{s:n,s:n,s:n,s:n,s:n}", "used", static_cast<Py_ssize_t>(s.used), "kept",
                       static_cast<Py_ssize_t>(s.kept), "bound", static_cast<Py_ssize_t>(s.bound),
                       "takes", static_cast<Py_ssize_t>(s.takes), "fresh",
                       static_cast<Py_ssize_t>(s.fresh));
}

PyMethodDef methods[] = {
    {"isa", isa, METH_NOARGS, "The instruction set of the CPU kernels."},
    {"isas", isas, METH_NOARGS, "Those that this processor has, the best last."},
    {"set_isa", set_isa, METH_O, "For tests: choose it; False where the processor lacks it."},
    {"empty_cache", empty_cache, METH_NOARGS, "Free the recycled buffers; returns the bytes."},
    {"pool_stats", pool_stats, METH_NOARGS, "Bytes and counts of the recycled buffers."},
    {nullptr, nullptr, 0, nullptr},
};

#endif

#define TEXT(x) #x
#define NAME_OF(module) TEXT(module)
#define JOIN(a, b) a##b
#define INIT_OF(module) JOIN(PyInit_, module)

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          NAME_OF(GANKERNELS_MODULE),
                          nullptr,
                          -1,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* INIT_OF(GANKERNELS_MODULE)() {
  return PyModule_Create(&definition);
}
