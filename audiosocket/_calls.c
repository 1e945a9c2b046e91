/* A call's frames to message and back: the usual case of Session (audiosocket/session.py). */
#include "_frames.h"

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
    PyObject *message = room < 0 || gate_let_go() < 0 ? NULL : PyBytes_FromStringAndSize(NULL, room);
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
    if (!size || messages == NULL || (self->open && !self->flowing) || self->app_blocked || self->recorder != Py_None
        || !is_a(self->turns, &turns_type) || ((turns *)self->turns)->heard == NULL
        || size > PIECE_ROOM / 4 || rest > PIECE_ROOM / 2 || rest + made > self->app_frame_bytes || made & 1) {
        if (gate_let_go() < 0) return -1; /* what has been sent before is not to be overtaken */
        return done(refer_to(SESSION_CALLER_AUDIO, (PyObject *)self, payload, NULL));
    }
    self->caller_frames++;
    self->gap_ticks = 0;
    if (!self->flowing) return done(PyObject_CallMethod((PyObject *)self, "_flow", NULL));
    memcpy(piece, PyBytes_AS_STRING(self->rest), rest);
    rest += put_samples(piece + rest, payload, self->samples);
    turns *listening = (turns *)self->turns;
    if (listening->heard == Py_None) {
        put_object(&listening->heard, Py_NewRef(payload));
    } else if (turns_hear_more(listening, payload) < 0) {
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

static void note_stall(session *self, long long frames) {
    if (self->ticks - self->stall_tick <= constants[GAP_TICKS]) {
        long long further = frames > self->stall_frames ? frames - self->stall_frames : 0;
        if (frames > self->stall_frames) self->stall_frames = frames;
        frames = further;
    } else {
        self->stalls++;
        self->stall_frames = frames;
    }
    self->stall_tick = self->ticks;
    playout_note_stall((playout *)self->playout, frames);
}

/* Session.caller_backlog, where no frame is too old: how many are, or -1. */
Py_ssize_t session_caller_backlog(session *self, Py_ssize_t frames) {
    long long since = self->ticks - self->filled_tick, owed = since <= constants[LATE_TICKS] ? self->owed : 0;
    long long left = owed - frames + 1 > 0 ? owed - frames + 1 : 0;
    if (self->caller_frames - self->filled_frames + frames - since <= constants[STALL_TICKS]) owed = 0;
    int late = frames > constants[STALL_TICKS] || owed;
    if (frames < 1 || !is_a(self->playout, &playout_type)
        || (late && (frames > constants[STALE_FRAMES] || (frames > 1 && owed > constants[STALE_FRAMES])))) {
        PyObject *number = PyLong_FromSsize_t(frames);
        PyObject *stale = number == NULL ? NULL : refer_to(SESSION_CALLER_BACKLOG, (PyObject *)self, number, NULL);
        frames = stale == NULL ? -1 : PyLong_AsSsize_t(stale);
        Py_XDECREF(number);
        Py_XDECREF(stale);
        return frames;
    }
    self->owed = left;
    if (self->ticks > constants[GAP_TICKS]) {
        if (late) {
            note_stall(self, frames > owed ? frames : owed);
        } else if (frames > 1) {
            playout_note_stall((playout *)self->playout, frames - 1);
        }
    }
    return 0;
}

static PyObject *caller_backlog(PyObject *self, PyObject *argument) {
    Py_ssize_t frames = PyLong_AsSsize_t(argument);
    if (frames == -1 && PyErr_Occurred()) return NULL;
    frames = session_caller_backlog((session *)self, frames);
    return frames < 0 ? NULL : PyLong_FromSsize_t(frames);
}

static PyObject *caller_audio(PyObject *self, PyObject *payload) {
    if (session_caller_audio((session *)self, payload) < 0) return NULL;
    Py_RETURN_NONE;
}

/* From the application to the caller */

int session_usual_text(session *self, const uint8_t *message, Py_ssize_t size) {
    if (size > USUAL_TEXT) return 0; /* it may be more than the platform takes, which the dialect counts */
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

PyObject *refer_tick(enum reference which, PyObject *self, long long missed) {
    PyObject *number = PyLong_FromLongLong(missed);
    if (number == NULL) return NULL;
    PyObject *result = refer_to(which, self, number, NULL);
    Py_DECREF(number);
    return result;
}

static int is_empty(PyObject *sized) {
    return sized != NULL && (PyList_CheckExact(sized) ? PyList_GET_SIZE(sized) : PyObject_Size(sized)) == 0;
}

/* Whether one tick may be done here. */
static int is_usual_tick(session *self, long long gap_ticks) {
    playout *queue = (playout *)self->playout;
    return !self->held && self->recorder == Py_None && is_a(self->playout, &playout_type)
        && is_a(self->turns, &turns_type) && is_empty(queue->marks) && is_empty(self->held_marks)
        && !(self->open && gap_ticks + 1 >= constants[GAP_TICKS]) && is_bytes(self->header)
        && is_bytes(self->silence_frame) && 0 < PyBytes_GET_SIZE(self->silence_frame)
        && PyBytes_GET_SIZE(self->silence_frame) <= FRAME_ROOM
        && queue->frame_bytes + PyBytes_GET_SIZE(self->header) <= FRAME_ROOM;
}

/* A frame without audio of the application's. */
static PyObject *nothing_played(session *self, uint8_t *out, Py_ssize_t *size) {
    playout *queue = (playout *)self->playout;
    if (!is_bytes(queue->cut_off) || PyBytes_GET_SIZE(queue->cut_off) > queue->frame_bytes
        || (self->prompt != Py_None && !PyBytes_GET_SIZE(queue->cut_off)))
        return PyObject_CallMethod((PyObject *)self, "_nothing_played", NULL);
    Py_ssize_t ending = PyBytes_GET_SIZE(queue->cut_off), header = PyBytes_GET_SIZE(self->header);
    PyObject *none = ending ? PyBytes_FromStringAndSize(NULL, 0) : NULL;
    if (ending && none == NULL) return NULL;
    self->silence_played++;
    if (!ending) {
        *size = PyBytes_GET_SIZE(self->silence_frame);
        memcpy(out, PyBytes_AS_STRING(self->silence_frame), *size);
        return NULL;
    }
    *size = header + queue->frame_bytes;
    memset(out, 0, *size);
    memcpy(out, PyBytes_AS_STRING(self->header), header);
    memcpy(out + header, PyBytes_AS_STRING(queue->cut_off), ending);
    put_object(&queue->cut_off, none);
    return NULL;
}

/* Session._tick, where `is_usual_tick`. The frame is the object that is returned, or lies in `out` (FRAME_ROOM) when
 * `*size` is over 0. NULL and a size of 0: an exception. */
static PyObject *one_tick(session *self, uint8_t *out, Py_ssize_t *size) {
    *size = 0;
    if (self->open) self->gap_ticks++;
    PyObject *frame = playout_tick((playout *)self->playout);
    if (frame == NULL) return NULL;
    if (turns_tick((turns *)self->turns, self->ticks, frame) < 0) goto failed;
    if (frame == Py_None) {
        Py_DECREF(frame);
        return nothing_played(self, out, size);
    }
    if (!self->first_audio) {
        self->first_audio = 1;
        if (done(PyObject_CallMethod((PyObject *)self, "_note", "s{}", "first_app_audio")) < 0) goto failed;
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
failed:
    Py_DECREF(frame);
    return NULL;
}

/* Session._late_tick; `out` has LATE_ROOM. As `one_tick`. */
static PyObject *late_tick(session *self, long long missed, uint8_t *out, Py_ssize_t *size) {
    self->ticks += missed;
    self->ticks_late++;
    self->gap_ticks = 0;
    if (missed >= constants[STALL_TICKS]) {
        note_stall(self, missed);
    } else {
        playout_note_stall((playout *)self->playout, missed);
    }
    Py_ssize_t all = 0;
    int usual = 1;
    for (long long left = missed < constants[CATCH_UP_FRAMES] ? missed : constants[CATCH_UP_FRAMES];; left--) {
        *size = 0;
        PyObject *frame = usual ? one_tick(self, out + all, size) : PyObject_CallMethod((PyObject *)self, "_tick", NULL);
        if (frame != NULL) {
            *size = PyBytes_Check(frame) ? PyBytes_GET_SIZE(frame) : 0;
            if (0 < *size && *size <= FRAME_ROOM) {
                memcpy(out + all, PyBytes_AS_STRING(frame), *size);
            } else {
                PyErr_SetString(PyExc_ValueError, "a frame has 20 ms");
                *size = 0;
            }
            Py_DECREF(frame);
        }
        if (*size == 0) return NULL;
        all += *size;
        *size = all;
        playout *queue = (playout *)self->playout;
        if (left == 0 || !is_a(self->playout, &playout_type) || queue->pushed - queue->position < queue->frame_bytes)
            return NULL;
        usual = is_usual_tick(self, self->gap_ticks); /* what has been told outside may have changed it */
    }
}

/* One tick. As `one_tick`; `out` has LATE_ROOM. */
PyObject *session_tick(session *self, long long missed, uint8_t *out, Py_ssize_t *size) {
    *size = 0;
    if (missed < 0 || constants[CATCH_UP_FRAMES] >= LATE_FRAMES || (missed && self->prompt != Py_None)
        || !is_usual_tick(self, missed ? 0 : self->gap_ticks))
        return refer_tick(SESSION_TICK, (PyObject *)self, missed);
    self->ticks++;
    return missed ? late_tick(self, missed, out, size) : one_tick(self, out, size);
}

static PyObject *tick_session(PyObject *self, PyObject *argument) {
    long long missed = PyLong_AsLongLong(argument);
    if (missed == -1 && PyErr_Occurred()) return NULL;
    uint8_t frame[LATE_ROOM];
    Py_ssize_t size;
    PyObject *made = session_tick((session *)self, missed, frame, &size);
    return size ? PyBytes_FromStringAndSize((char *)frame, size) : made;
}

#define SELF session
static PyMethodDef session_methods[] = {
    {"caller_audio", caller_audio, METH_O, NULL},
    {"caller_backlog", caller_backlog, METH_O, NULL},
    {"app_text", app_text, METH_O, NULL},
    {"tick", tick_session, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
TYPE(session, SESSION, "Session")
#undef SELF
