/* send_each: bytes to many sockets in one call, without the interpreter's lock. See socket_writes.py. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <errno.h>
#include <limits.h>
#include <sys/socket.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS: Python ignores SIGPIPE */
#endif

typedef struct {
  int descriptor;
  char *bytes;
  Py_ssize_t size;
  Py_ssize_t result;
} Write;

/* The bytes stay alive: the caller's tuple of tuples can't change during the call. */
static int read_write(PyObject *item, Write *made) {
  if (!PyTuple_Check(item) || PyTuple_Size(item) != 2) {
    PyErr_SetString(PyExc_TypeError, "send_each takes pairs of a descriptor and bytes");
    return -1;
  }
  long descriptor = PyLong_AsLong(PyTuple_GetItem(item, 0));
  if (descriptor == -1 && PyErr_Occurred()) return -1;
  if (descriptor < 0 || descriptor > INT_MAX) {
    PyErr_Format(PyExc_ValueError, "%ld is no descriptor", descriptor);
    return -1;
  }
  made->descriptor = (int)descriptor;
  return PyBytes_AsStringAndSize(PyTuple_GetItem(item, 1), &made->bytes, &made->size);
}

static PyObject *send_each(PyObject *module, PyObject *items) {
  (void)module;
  if (!PyTuple_Check(items)) {
    PyErr_SetString(PyExc_TypeError, "send_each takes a tuple");
    return NULL;
  }
  Py_ssize_t count = PyTuple_Size(items);
  Write *writes = PyMem_Calloc(count ? (size_t)count : 1, sizeof(Write));
  if (!writes) return PyErr_NoMemory();
  PyObject *results = NULL;
  for (Py_ssize_t i = 0; i < count; i++)
    if (read_write(PyTuple_GetItem(items, i), &writes[i])) goto end;
  Py_BEGIN_ALLOW_THREADS
  for (Py_ssize_t i = 0; i < count; i++) {
    ssize_t sent = send(writes[i].descriptor, writes[i].bytes, (size_t)writes[i].size, MSG_DONTWAIT | MSG_NOSIGNAL);
    writes[i].result = sent < 0 ? -(Py_ssize_t)errno : (Py_ssize_t)sent;
  }
  Py_END_ALLOW_THREADS
  results = PyList_New(count);
  for (Py_ssize_t i = 0; results && i < count; i++) {
    PyObject *result = PyLong_FromSsize_t(writes[i].result);
    if (!result || PyList_SetItem(results, i, result)) Py_CLEAR(results);
  }
end:
  PyMem_Free(writes);
  return results;
}

static PyMethodDef methods[] = {
    {"send_each", send_each, METH_O,
     "send_each(writes: tuple[tuple[int, bytes], ...]) -> list[int]\n\n"
     "Send each write's bytes to its socket, which does not block. Returns how many bytes each took, or -errno."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_send", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__send(void) { return PyModuleDef_Init(&definition); }
