/* Poll: reads the sockets of legs and applications, see audiosocket/reading.py. */
#include "_frames.h"
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define READY 256
#define ROUNDS 16 /* so many times: all sockets of a worker, once each, before the clock has its turn again */

typedef struct {
    PyObject_HEAD
    int epoll, room;
    PyObject **watched; /* by the socket's number: an AudioSocketLeg or a Gate */
} poll;

static uint8_t arrived[65536]; /* between a read and its use nothing else is read */

static PyObject *poll_new(PyTypeObject *type, PyObject *args, PyObject *names) {
    (void)args;
    (void)names;
    poll *self = (poll *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (self->epoll < 0) {
        Py_DECREF(self);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return (PyObject *)self;
}

static int poll_traverse(PyObject *object, visitproc visit, void *arg) {
    poll *self = (poll *)object;
    for (int i = 0; i < self->room; i++) Py_VISIT(self->watched[i]);
    return 0;
}

static int poll_clear(PyObject *object) {
    poll *self = (poll *)object;
    for (int i = 0; i < self->room; i++) Py_CLEAR(self->watched[i]);
    return 0;
}

static void poll_free(PyObject *object) {
    poll *self = (poll *)object;
    PyObject_GC_UnTrack(object);
    poll_clear(object);
    PyMem_Free(self->watched);
    if (self->epoll >= 0) close(self->epoll);
    Py_TYPE(object)->tp_free(object);
}

/* watch(socket, reader): what arrives at a socket goes to a reader */
static PyObject *watch(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    poll *self = (poll *)object;
    if (count != 2) return PyErr_Format(PyExc_TypeError, "2 arguments expected, not %zd", count);
    long number = PyLong_AsLong(args[0]);
    if (number == -1 && PyErr_Occurred()) return NULL;
    if (number < 0 || number > 1 << 24) return PyErr_Format(PyExc_ValueError, "%ld is no socket", number);
    if (!is_a(args[1], &leg_type) && !is_a(args[1], &gate_type))
        return PyErr_Format(PyExc_TypeError, "a leg or a gate expected, not %.80s", Py_TYPE(args[1])->tp_name);
    if (number >= self->room) {
        int room = (int)number + 1 + (int)number / 2;
        PyObject **more = PyMem_Realloc(self->watched, room * sizeof *more);
        if (more == NULL) return PyErr_NoMemory();
        memset(more + self->room, 0, (room - self->room) * sizeof *more);
        self->watched = more;
        self->room = room;
    }
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = (int)number};
    if (epoll_ctl(self->epoll, EPOLL_CTL_ADD, (int)number, &wanted) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    put_object(&self->watched[number], Py_NewRef(args[1]));
    Py_RETURN_NONE;
}

static void drop(poll *self, long number) {
    if (number < 0 || number >= self->room || self->watched[number] == NULL) return;
    epoll_ctl(self->epoll, EPOLL_CTL_DEL, (int)number, NULL); /* harmless if it is closed */
    put_object(&self->watched[number], NULL);
}

/* forget(socket): reads it no more; harmless when it is not read */
static PyObject *forget(PyObject *self, PyObject *argument) {
    long number = PyLong_AsLong(argument);
    if (number == -1 && PyErr_Occurred()) return NULL;
    drop((poll *)self, number);
    Py_RETURN_NONE;
}

static int take(PyObject *reader, ssize_t size) {
    int failed = is_a(reader, &leg_type) ? leg_read((leg *)reader, arrived, size, NULL)
                                         : gate_read((gate *)reader, arrived, size, NULL);
    if (failed == 0) return 0;
    PyObject *type, *value, *trace; /* one call's fault is that call's end */
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace != NULL) PyException_SetTraceback(value, trace);
    PyObject *result = PyObject_CallMethod(reader, "_failed", "O", value);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    if (result == NULL) return -1;
    Py_DECREF(result);
    return 0;
}

/* Takes what has arrived at up to READY sockets: how many they were; -1: an exception. */
static int read_some(poll *self) {
    struct epoll_event ready[READY];
    int count = epoll_wait(self->epoll, ready, READY, 0);
    for (int i = 0; i < count; i++) {
        int number = ready[i].data.fd;
        PyObject *reader = number < self->room ? self->watched[number] : NULL;
        if (reader == NULL) continue; /* one before it has ended this one */
        ssize_t size = recv(number, arrived, sizeof arrived, MSG_DONTWAIT);
        if (size < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        int error = size < 0 ? errno : 0;
        Py_INCREF(reader);
        int failed = 0;
        if (size > 0) {
            failed = take(reader, size);
        } else {
            drop(self, number);
            PyObject *result = PyObject_CallMethod(reader, "_reading_over", "i", error);
            if (result == NULL) failed = -1;
            Py_XDECREF(result);
        }
        Py_DECREF(reader);
        if (failed < 0) return -1;
    }
    return count;
}

/* read(): takes what has arrived. The kernel names the sockets in turn, so that none is left out. */
static PyObject *read_ready(PyObject *self, PyObject *unused) {
    (void)unused;
    int count = READY;
    for (int round = 0; round < ROUNDS && count == READY; round++) count = read_some((poll *)self);
    if (count < 0 && PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyObject *fileno_of(PyObject *self, PyObject *unused) {
    (void)unused;
    return PyLong_FromLong(((poll *)self)->epoll);
}

static PyMethodDef poll_methods[] = {
    {"watch", (PyCFunction)(void (*)(void))watch, METH_FASTCALL, NULL},
    {"forget", forget, METH_O, NULL},
    {"read", read_ready, METH_NOARGS, NULL},
    {"fileno", fileno_of, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
PyTypeObject poll_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "audiosocket._frames.Poll",
    .tp_basicsize = sizeof(poll),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = poll_new,
    .tp_dealloc = poll_free,
    .tp_traverse = poll_traverse,
    .tp_clear = poll_clear,
    .tp_methods = poll_methods,
};
