/* The usual case of AudioSocketLeg (audiosocket/legs/audiosocket.py): a call's frames from and to its socket. */
#include "_frames.h"
#include <errno.h>
#include <sys/socket.h>

#define HEADER_BYTES 3

/* How many frames as long as the one before them a read holds, and nothing else; 0: it is something else. */
static Py_ssize_t usual_frames(leg *self, const uint8_t *data, Py_ssize_t size) {
    Py_ssize_t count = self->usual_bytes > HEADER_BYTES ? size / self->usual_bytes : 0;
    if (count == 0 || count * self->usual_bytes != size || self->closing || !self->whole
        || !is_a(self->session, &session_type) || !is_bytes(self->usual_header)
        || PyBytes_GET_SIZE(self->usual_header) != HEADER_BYTES)
        return 0;
    for (Py_ssize_t i = 0; i < count; i++)
        if (memcmp(data + i * self->usual_bytes, PyBytes_AS_STRING(self->usual_header), HEADER_BYTES) != 0) return 0;
    return count;
}

/* What one read has given: `data`, or `object` with the same in it. */
int leg_read(leg *self, const uint8_t *data, Py_ssize_t size, PyObject *object) {
    Py_ssize_t count = usual_frames(self, data, size);
    if (count == 0) {
        object = object != NULL ? Py_NewRef(object) : PyBytes_FromStringAndSize((const char *)data, size);
        int failed = object == NULL ? -1 : done(refer_to(LEG_DATA_RECEIVED, (PyObject *)self, object, NULL));
        Py_XDECREF(object);
        return failed;
    }
    PyObject *carried = Py_NewRef(self->session);
    int failed = 0;
    if (count > 1) {
        Py_ssize_t beyond = count - (Py_ssize_t)self->read_frames;
        Py_ssize_t stale = beyond > 0 ? session_caller_backlog((session *)carried, 1 + beyond) : 0;
        if (stale < 0 || stale > count) {
            failed = -1;
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "more frames are stale than there are");
        } else {
            count -= stale;
            data += stale * self->usual_bytes;
            gate_gather(); /* one write for all of them */
        }
    }
    for (; count && !failed && !self->closing; count--, data += self->usual_bytes) {
        PyObject *payload = PyBytes_FromStringAndSize((const char *)data + HEADER_BYTES, self->usual_bytes - HEADER_BYTES);
        if (payload == NULL) failed = -1;
        else failed = session_caller_audio((session *)carried, payload);
        Py_XDECREF(payload);
    }
    if (gate_over() < 0) failed = -1;
    Py_DECREF(carried);
    return failed;
}

static PyObject *data_received(PyObject *self, PyObject *data) {
    if (!is_bytes(data)) return refer_to(LEG_DATA_RECEIVED, self, data, NULL);
    if (leg_read((leg *)self, (const uint8_t *)PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), data) < 0) return NULL;
    Py_RETURN_NONE;
}

/* Sends a frame straight to the socket where nothing waits before it. How much of it went; -1: an exception. */
static Py_ssize_t send_now(leg *self, const void *data, Py_ssize_t size) {
    if (self->socket < 0) return 0;
    if (self->queued) { /* by the transport's own write */
        PyObject *waiting = PyObject_CallMethod(self->transport, "get_write_buffer_size", NULL);
        if (waiting == NULL) return -1;
        long long unsent = PyLong_AsLongLong(waiting);
        Py_DECREF(waiting);
        if (unsent == -1 && PyErr_Occurred()) return -1;
        if (unsent) return 0;
        self->queued = 0;
    }
    ssize_t sent = send((int)self->socket, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    return sent < 0 ? 0 : sent; /* whatever it was, the transport finds it too */
}

int leg_tick(leg *self, long long missed) {
    if (self->closing || !is_a(self->session, &session_type) || self->transport == NULL || self->transport == Py_None)
        return done(refer_tick(LEG_TICK, (PyObject *)self, missed));
    uint8_t room[LATE_ROOM];
    Py_ssize_t size, sent;
    PyObject *carried = Py_NewRef(self->session);
    PyObject *made = session_tick((session *)carried, missed, room, &size);
    Py_DECREF(carried);
    if (made == NULL && size == 0) return -1;
    const char *data = (char *)room;
    if (made != NULL) {
        if (!PyBytes_CheckExact(made)) {
            PyErr_Format(PyExc_TypeError, "bytes expected, not %.80s", Py_TYPE(made)->tp_name);
            Py_DECREF(made);
            return -1;
        }
        data = PyBytes_AS_STRING(made);
        size = PyBytes_GET_SIZE(made);
    }
    int failed = 0;
    /* Closed meanwhile: there is no socket any more. */
    if (self->transport == NULL || self->transport == Py_None || self->closing) goto out;
    sent = send_now(self, data, size);
    if (sent < 0) {
        failed = -1;
    } else if (sent == size) {
        self->blocked_ticks = 0;
    } else {
        PyObject *left = PyBytes_FromStringAndSize(data + sent, size - sent);
        failed = left == NULL ? -1 : done(PyObject_CallMethod((PyObject *)self, "_write", "OL", left, missed));
        Py_XDECREF(left);
    }
    if (!failed && self->read_frames > 1 && is_a(self->session, &session_type)
        && ((session *)self->session)->gap_ticks >= constants[GAP_TICKS] - 1)
        failed = done(PyObject_CallMethod((PyObject *)self, "coalesce", "O", Py_False));
out:
    Py_XDECREF(made);
    return failed;
}

static PyObject *tick_leg(PyObject *self, PyObject *argument) {
    long long missed = PyLong_AsLongLong(argument);
    if (missed == -1 && PyErr_Occurred()) return NULL;
    if (leg_tick((leg *)self, missed) < 0) return NULL;
    Py_RETURN_NONE;
}

leg *leg_of(PyObject *bound) {
    if (bound == NULL || !PyCFunction_Check(bound) || PyCFunction_GET_FUNCTION(bound) != tick_leg) return NULL;
    return (leg *)PyCFunction_GET_SELF(bound);
}

#define SELF leg
static PyMethodDef leg_methods[] = {
    {"data_received", data_received, METH_O, NULL}, {"_tick", tick_leg, METH_O, NULL}, {NULL, NULL, 0, NULL},
};
TYPE(leg, LEG, "AudioSocketLeg")
#undef SELF

