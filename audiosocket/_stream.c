/* The application's WebSocket over plain TCP: the usual case of Gate (audiosocket/app_gate.py). */
#include "_frames.h"
#include <pthread.h>
#include <sys/random.h>
#include <sys/socket.h>

#define TEXT_WHOLE 0x81 /* a text frame that is a whole message */
#define MASKED 0x80

/* Masking keys must not be foreseen (RFC 6455, section 5.3): they come from the kernel, many at a time. */
static uint8_t keys[4096];
static size_t keys_left;

static void forget_keys(void) { keys_left = 0; } /* in a child process: it needs keys of its own */

int prepare_stream(void) {
    if (pthread_atfork(NULL, NULL, forget_keys) == 0) return 0;
    PyErr_NoMemory();
    return -1;
}

static int next_key(uint8_t key[4]) {
    if (keys_left == 0) {
        for (size_t have = 0; have < sizeof keys;) {
            ssize_t more = getrandom(keys + have, sizeof keys - have, 0);
            if (more < 0 && PyErr_CheckSignals() < 0) return -1;
            if (more > 0) have += more;
        }
        keys_left = sizeof keys;
    }
    keys_left -= 4;
    memcpy(key, keys + keys_left, 4);
    return 0;
}

/* From the application */

/* A frame at `data`: its header's length and the payload's; 0: it is not a whole text message that lies there whole. */
static Py_ssize_t text_header(const uint8_t *data, Py_ssize_t size, long long most, Py_ssize_t *payload) {
    if (size < 2 || data[0] != TEXT_WHOLE || data[1] & MASKED) return 0;
    Py_ssize_t header = 2, length = data[1];
    if (length == 126) {
        header = 4;
        if (size < header) return 0;
        length = data[2] << 8 | data[3];
        if (length < 126) return 0; /* not the shortest form: picows ends the stream */
    } else if (length == 127) {
        return 0;
    }
    *payload = length;
    return length <= most && size - header >= length ? header : 0;
}

static int take_text(gate *self, const uint8_t *text, Py_ssize_t size) {
    PyObject *app_text = Py_XNewRef(self->app_text);
    session *heard = session_of(app_text);
    int taken = heard == NULL ? 0 : session_usual_text(heard, text, size);
    if (taken == 0) {
        PyObject *message = PyBytes_FromStringAndSize((const char *)text, size);
        taken = message == NULL || app_text == NULL ? -1 : done(PyObject_CallOneArg(app_text, message));
        Py_XDECREF(message);
    }
    Py_XDECREF(app_text);
    return taken < 0 ? -1 : 0;
}

int gate_read(gate *self, const uint8_t *data, Py_ssize_t size, PyObject *object) {
    Py_ssize_t at = 0, payload, header;
    while (self->reads && self->between && (header = text_header(data + at, size - at, self->max_bytes, &payload))) {
        if (take_text(self, data + at + header, payload) < 0) return -1;
        at += header + payload;
    }
    if (at == size) return 0;
    object = at == 0 && object != NULL ? Py_NewRef(object) : PyBytes_FromStringAndSize((const char *)data + at, size - at);
    int failed = object == NULL ? -1 : done(refer_to(GATE_DATA_RECEIVED, (PyObject *)self, object, NULL));
    Py_XDECREF(object);
    return failed;
}

static PyObject *data_received(PyObject *self, PyObject *data) {
    if (!is_bytes(data)) return refer_to(GATE_DATA_RECEIVED, self, data, NULL);
    if (gate_read((gate *)self, (const uint8_t *)PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), data) < 0) return NULL;
    Py_RETURN_NONE;
}

/* To the application */

/* Puts out what is ready to leave. */
static int put_out(gate *self, const uint8_t *data, Py_ssize_t size) {
    if (self->queued) { /* by the transport's own write */
        PyObject *waiting = PyObject_CallNoArgs(self->unsent);
        if (waiting == NULL) return -1;
        long long unsent = PyLong_AsLongLong(waiting);
        Py_DECREF(waiting);
        if (unsent == -1 && PyErr_Occurred()) return -1;
        self->queued = unsent != 0;
    }
    ssize_t sent = self->queued ? 0 : send((int)self->socket, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent == size) return 0;
    if (sent < 0) sent = 0; /* whatever it was, the transport finds it too */
    PyObject *left = PyBytes_FromStringAndSize((const char *)data + sent, size - sent);
    if (left == NULL) return -1;
    self->queued = 1;
    int failed = done(PyObject_CallOneArg(self->write, left));
    Py_DECREF(left);
    return failed;
}

/* Messages of one read of a leg, which leave together: a worker that is late sends half as often as one that is in time. */
static struct {
    int on;
    gate *by;
    Py_ssize_t size;
    uint8_t data[65536];
} gathered;

void gate_gather(void) { gathered.on = 1; }

int gate_let_go(void) {
    gate *by = gathered.by;
    if (by == NULL) return 0;
    gathered.by = NULL;
    int failed = put_out(by, gathered.data, gathered.size);
    gathered.size = 0;
    Py_DECREF(by);
    return failed;
}

int gate_over(void) {
    PyObject *type, *value, *trace; /* of what has failed meanwhile: what was said before it leaves all the same */
    gathered.on = 0;
    if (gathered.by == NULL) return 0;
    PyErr_Fetch(&type, &value, &trace);
    int failed = gate_let_go();
    if (type != NULL) PyErr_Restore(type, value, trace);
    return failed;
}

static int gather(gate *self, const uint8_t *data, Py_ssize_t size) {
    if (gathered.by != NULL && (gathered.by != self || size > (Py_ssize_t)sizeof gathered.data - gathered.size)
        && gate_let_go() < 0)
        return -1;
    if (size > (Py_ssize_t)sizeof gathered.data) return put_out(self, data, size);
    memcpy(gathered.data + gathered.size, data, size);
    gathered.size += size;
    if (gathered.by == NULL) gathered.by = (gate *)Py_NewRef((PyObject *)self);
    return 0;
}

int gate_send(gate *self, uint8_t *room, Py_ssize_t size) {
    uint8_t *text = room + GATE_HEADER, key[8];
    Py_ssize_t header = (size < 126 ? 2 : size < 65536 ? 4 : 10) + 4;
    uint8_t *frame = text - header;
    if (next_key(key) < 0) return -1;
    memcpy(key + 4, key, 4);
    frame[0] = TEXT_WHOLE;
    if (size < 126) {
        frame[1] = MASKED | size;
    } else if (size < 65536) {
        frame[1] = MASKED | 126;
        frame[2] = size >> 8;
        frame[3] = size & 255;
    } else {
        frame[1] = MASKED | 127;
        for (int i = 0; i < 8; i++) frame[2 + i] = (uint8_t)((unsigned long long)size >> 8 * (7 - i));
    }
    memcpy(text - 4, key, 4);
    uint64_t wide, word;
    memcpy(&wide, key, 8);
    Py_ssize_t at = 0;
    for (; size - at >= 8; at += 8) {
        memcpy(&word, text + at, 8);
        word ^= wide;
        memcpy(text + at, &word, 8);
    }
    for (; at < size; at++) text[at] ^= key[at & 3];
    return gathered.on ? gather(self, frame, header + size) : put_out(self, frame, header + size);
}

static PyObject *send_text(PyObject *object, PyObject *message) { return refer_to(GATE_SEND, object, message, NULL); }

gate *gate_of(PyObject *bound) {
    if (bound == NULL || !PyCFunction_Check(bound) || PyCFunction_GET_FUNCTION(bound) != send_text) return NULL;
    gate *found = (gate *)PyCFunction_GET_SELF(bound);
    return found->sends && found->socket >= 0 ? found : NULL;
}

#define SELF gate
static PyMethodDef gate_methods[] = {
    {"data_received", data_received, METH_O, NULL}, {"send", send_text, METH_O, NULL}, {NULL, NULL, 0, NULL},
};
TYPE(gate, GATE, "Gate")
#undef SELF
