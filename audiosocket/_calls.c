/* A call's frames from socket to message and back: the usual case of Session (audiosocket/session.py) and of
 * AudioSocketLeg (audiosocket/legs/audiosocket.py). */
#include "_frames.h"
#include <errno.h>
#include <sys/socket.h>

#define HEADER_BYTES 3
#define FRAME_ROOM 1024 /* of an AudioSocket frame of ours: 963 bytes at 24 kHz */
#define PIECE_ROOM 8192 /* of samples that are made into a message without a Python object between */
#define MESSAGE_ROOM 16384 /* of a message that is written where it is sent from */

/* From the caller to the application */

/* The payload as the application's samples: a table of 512 bytes gives two for each of it, one of 256 another one, and
 * without one it stays what it is. */
static Py_ssize_t put_samples(uint8_t *out, PyObject *payload, PyObject *table) {
    const uint8_t *in = (const uint8_t *)PyBytes_AS_STRING(payload), *samples = (const uint8_t *)PyBytes_AS_STRING(table);
    Py_ssize_t size = PyBytes_GET_SIZE(payload);
    switch (PyBytes_GET_SIZE(table)) {
    case 512:
        for (Py_ssize_t i = 0; i < size; i++) memcpy(out + 2 * i, samples + 2 * in[i], 2);
        return 2 * size;
    case 256:
        for (Py_ssize_t i = 0; i < size; i++) out[i] = samples[in[i]];
        return size;
    default:
        memcpy(out, in, size);
        return size;
    }
}

static int send_media(session *self, media_messages *messages, const uint8_t *audio, Py_ssize_t size) {
    Py_ssize_t room = media_message_room(messages, size);
    gate *out = gate_of(self->send);
    if (out != NULL && 0 <= room && room <= MESSAGE_ROOM) {
        uint8_t text[GATE_HEADER + MESSAGE_ROOM];
        char *end = put_media_message(messages, (char *)text + GATE_HEADER, audio, size);
        self->sent++;
        Py_INCREF(out);
        int failed = gate_send(out, text, end - (char *)text - GATE_HEADER);
        Py_DECREF(out);
        return failed;
    }
    PyObject *message = room < 0 ? NULL : PyBytes_FromStringAndSize(NULL, room);
    if (message == NULL) return -1;
    char *start = PyBytes_AS_STRING(message);
    _PyBytes_Resize(&message, put_media_message(messages, start, audio, size) - start);
    if (message == NULL) return -1;
    self->sent++;
    int failed = done(PyObject_CallOneArg(self->send, message));
    Py_DECREF(message);
    return failed;
}

int session_caller_audio(session *self, PyObject *payload) {
    media_messages *messages = messages_of(self->media);
    uint8_t piece[PIECE_ROOM];
    Py_ssize_t rest = is_bytes(self->rest) ? PyBytes_GET_SIZE(self->rest) : PIECE_ROOM;
    Py_ssize_t size = is_bytes(payload) && is_bytes(self->samples) ? PyBytes_GET_SIZE(payload) : 0;
    Py_ssize_t made = size && PyBytes_GET_SIZE(self->samples) == 512 ? 2 * size : size;
    if (!size || messages == NULL || !self->flowing || self->app_blocked || self->recorder != Py_None
        || !is_a(self->turns, &turns_type) || ((turns *)self->turns)->heard == NULL
        || size > PIECE_ROOM / 4 || rest > PIECE_ROOM / 2 || rest + made > self->app_frame_bytes || made & 1)
        return done(refer_to(SESSION_CALLER_AUDIO, (PyObject *)self, payload, NULL));
    memcpy(piece, PyBytes_AS_STRING(self->rest), rest);
    rest += put_samples(piece + rest, payload, self->samples);
    self->caller_frames++;
    self->gap_ticks = 0;
    turns *listening = (turns *)self->turns;
    if (listening->heard == Py_None) {
        put_object(&listening->heard, Py_NewRef(payload));
    } else if (done(PyObject_CallMethod(self->turns, "hear_more", "O", payload)) < 0) {
        return -1;
    }
    int whole = rest == self->app_frame_bytes;
    if (!whole || PyBytes_GET_SIZE(self->rest)) {
        PyObject *left = PyBytes_FromStringAndSize((char *)piece, whole ? 0 : rest);
        if (left == NULL) return -1;
        put_object(&self->rest, left);
    }
    return whole ? send_media(self, messages, piece, rest) : 0;
}

static PyObject *caller_audio(PyObject *self, PyObject *payload) {
    if (session_caller_audio((session *)self, payload) < 0) return NULL;
    Py_RETURN_NONE;
}

/* From the application to the caller */

int session_usual_text(session *self, const uint8_t *message, Py_ssize_t size) {
    if (self->held || !is_bytes(self->usual_sid) || !is_bytes(self->app_samples) || !is_a(self->playout, &playout_type))
        return 0;
    PyObject *samples = PyBytes_GET_SIZE(self->app_samples) == 512 ? self->app_samples : NULL;
    PyObject *audio = read_media_message(message, size, self->usual_sid, samples);
    if (audio == NULL) return PyErr_Occurred() ? -1 : 0;
    self->media_received++;
    self->bytes_received += PyBytes_GET_SIZE(audio);
    int failed = playout_push((playout *)self->playout, audio);
    Py_DECREF(audio);
    return failed < 0 ? -1 : 1;
}

static PyObject *app_text(PyObject *self, PyObject *message) {
    int taken = 0;
    if (is_bytes(message))
        taken = session_usual_text((session *)self, (const uint8_t *)PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message));
    if (taken < 0) return NULL;
    if (taken == 0) return refer_to(SESSION_APP_TEXT, self, message, NULL);
    Py_RETURN_NONE;
}

session *session_of(PyObject *bound) {
    if (bound == NULL || !PyCFunction_Check(bound) || PyCFunction_GET_FUNCTION(bound) != app_text) return NULL;
    return (session *)PyCFunction_GET_SELF(bound);
}

static PyObject *refer_tick(enum reference which, PyObject *self, long long missed) {
    PyObject *number = PyLong_FromLongLong(missed);
    if (number == NULL) return NULL;
    PyObject *result = refer_to(which, self, number, NULL);
    Py_DECREF(number);
    return result;
}

static int is_empty(PyObject *sized) {
    return sized != NULL && (PyList_CheckExact(sized) ? PyList_GET_SIZE(sized) : PyObject_Size(sized)) == 0;
}

/* One tick. The frame is the object that is returned, or lies in `out` (FRAME_ROOM) when `*size` is over 0. NULL and a
 * size of 0: an exception. */
static PyObject *session_tick(session *self, long long missed, uint8_t *out, Py_ssize_t *size) {
    *size = 0;
    playout *queue = (playout *)self->playout;
    if (missed || self->held || !self->first_audio || self->recorder != Py_None || !is_a(self->playout, &playout_type)
        || !is_a(self->turns, &turns_type) || !is_empty(queue->marks) || !is_empty(self->held_marks)
        || (self->open && self->gap_ticks + 1 >= constants[GAP_TICKS]) || !is_bytes(self->header))
        return refer_tick(SESSION_TICK, (PyObject *)self, missed);
    self->ticks++;
    if (self->open) self->gap_ticks++;
    PyObject *frame = playout_tick(queue);
    if (frame == NULL) return NULL;
    if (turns_tick((turns *)self->turns, self->ticks, frame) < 0) {
        Py_DECREF(frame);
        return NULL;
    }
    if (frame == Py_None) {
        Py_DECREF(frame);
        if (self->prompt != Py_None || !is_bytes(queue->cut_off) || PyBytes_GET_SIZE(queue->cut_off))
            return PyObject_CallMethod((PyObject *)self, "_nothing_played", NULL);
        self->silence_played++;
        return Py_NewRef(self->silence_frame);
    }
    Py_ssize_t header = PyBytes_GET_SIZE(self->header);
    if (is_bytes(frame) && header + PyBytes_GET_SIZE(frame) <= FRAME_ROOM) {
        *size = header + PyBytes_GET_SIZE(frame);
        memcpy(out, PyBytes_AS_STRING(self->header), header);
        memcpy(out + header, PyBytes_AS_STRING(frame), *size - header);
        Py_DECREF(frame);
        return NULL;
    }
    PyObject *whole = PyNumber_Add(self->header, frame);
    Py_DECREF(frame);
    return whole;
}

static PyObject *tick_session(PyObject *self, PyObject *argument) {
    long long missed = PyLong_AsLongLong(argument);
    if (missed == -1 && PyErr_Occurred()) return NULL;
    uint8_t frame[FRAME_ROOM];
    Py_ssize_t size;
    PyObject *made = session_tick((session *)self, missed, frame, &size);
    return size ? PyBytes_FromStringAndSize((char *)frame, size) : made;
}

#define SELF session
static PyMethodDef session_methods[] = {
    {"caller_audio", caller_audio, METH_O, NULL},
    {"app_text", app_text, METH_O, NULL},
    {"tick", tick_session, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
TYPE(session, SESSION, "Session")
#undef SELF

/* The leg */

/* How many frames as long as the one before them a read holds, and nothing else; 0: it is something else. */
static Py_ssize_t usual_frames(leg *self, const uint8_t *data, Py_ssize_t size) {
    Py_ssize_t count = self->usual_bytes > HEADER_BYTES ? size / self->usual_bytes : 0;
    if (count == 0 || count > constants[STALL_TICKS] || count * self->usual_bytes != size || self->closing || !self->whole
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
        PyObject *old = PyObject_CallMethod(carried, "caller_backlog", "n", count);
        Py_ssize_t stale = old == NULL ? -1 : PyLong_AsSsize_t(old);
        Py_XDECREF(old);
        if (stale < 0 || stale > count) {
            failed = -1;
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "more frames are stale than there are");
        } else {
            count -= stale;
            data += stale * self->usual_bytes;
        }
    }
    for (; count && !failed && !self->closing; count--, data += self->usual_bytes) {
        PyObject *payload = PyBytes_FromStringAndSize((const char *)data + HEADER_BYTES, self->usual_bytes - HEADER_BYTES);
        if (payload == NULL) failed = -1;
        else failed = session_caller_audio((session *)carried, payload);
        Py_XDECREF(payload);
    }
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
    uint8_t room[FRAME_ROOM];
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

