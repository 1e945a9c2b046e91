/* Playout: see audiosocket/playout.py, which has the rules. */
#include "_frames.h"
#include <stdlib.h>

#define MOST_SAMPLES 480 /* of a frame: 20 ms at 24 kHz */

static PyObject *deque_append, *deque_popleft; /* methods of collections.deque, which has no calls in C */

int prepare_queues(void) {
    PyObject *module = PyImport_ImportModule("collections");
    PyObject *deque = module == NULL ? NULL : PyObject_GetAttrString(module, "deque");
    if (deque != NULL) {
        deque_append = PyObject_GetAttrString(deque, "append");
        deque_popleft = PyObject_GetAttrString(deque, "popleft");
    }
    Py_XDECREF(deque);
    Py_XDECREF(module);
    return deque_append == NULL || deque_popleft == NULL ? -1 : 0;
}

int put_last(PyObject *deque, PyObject *item) {
    PyObject *args[] = {deque, item};
    return done(PyObject_Vectorcall(deque_append, args, 2, NULL));
}

PyObject *take_first(PyObject *deque) { return PyObject_Vectorcall(deque_popleft, &deque, 1, NULL); }

static long long less(long long one, long long other) { return one < other ? one : other; }
static long long more(long long one, long long other) { return one > other ? one : other; }

/* Audio of the application */

int playout_push(playout *self, PyObject *audio) {
    Py_ssize_t size = is_bytes(audio) ? PyBytes_GET_SIZE(audio) : 0;
    long long depth = self->pushed - self->position + size;
    Py_ssize_t waiting = size && self->chunks != NULL ? PyObject_Size(self->chunks) : -1;
    PyErr_Clear();
    if (waiting < 0 || self->skip_byte || depth > self->max_bytes
        /* a crumb that may have to be put to another one */
        || (size < self->frame_bytes && waiting))
        return done(refer_to(PLAYOUT_PUSH, (PyObject *)self, audio, NULL));
    if (put_last(self->chunks, audio) < 0) return -1;
    if (!waiting && 0 < self->idle_ticks && self->idle_ticks <= constants[UNDERRUN_GAP_TICKS] && self->frames_played) {
        self->underruns++;
        if (self->recovering > constants[PATIENT_TICKS] - constants[BLAMED_TICKS]) self->stall_underruns++;
    }
    self->pushed += size;
    if (depth > self->peak_bytes) self->peak_bytes = depth;
    return 0;
}

/* Takes the frame at the head of the queue, of as many pieces as it lies there in. NULL without an error: what is queued
 * is not as usual, and has been left. */
static PyObject *take(playout *self) {
    Py_ssize_t size = self->frame_bytes, have = 0, over = 0, head = self->head;
    PyObject *frame = NULL;
    while (have < size) {
        PyObject *chunk = PySequence_GetItem(self->chunks, over);
        if (chunk == NULL || !PyBytes_CheckExact(chunk) || head < 0 || head >= PyBytes_GET_SIZE(chunk)) {
            PyErr_Clear();
            Py_XDECREF(chunk);
            Py_XDECREF(frame);
            return NULL;
        }
        Py_ssize_t left = PyBytes_GET_SIZE(chunk) - head;
        if (left == size && head == 0 && have == 0) { /* just this frame */
            frame = chunk;
            have = size;
            over = 1;
            break;
        }
        if (frame == NULL && (frame = PyBytes_FromStringAndSize(NULL, size)) == NULL) {
            Py_DECREF(chunk);
            return NULL;
        }
        Py_ssize_t part = left < size - have ? left : size - have;
        memcpy(PyBytes_AS_STRING(frame) + have, PyBytes_AS_STRING(chunk) + head, part);
        Py_DECREF(chunk);
        have += part;
        if (part == left) {
            over++;
            head = 0;
        } else {
            head += part;
        }
    }
    for (; over; over--) {
        if (done(take_first(self->chunks)) < 0) {
            Py_DECREF(frame);
            return NULL;
        }
    }
    self->head = head;
    self->position += size;
    return frame;
}

/* Fades. They are done in the very steps in which numpy does them, so that the same bytes come out; the compiler is told
 * not to make one of two (setup.py). */

/* The weights of a fade-in; NULL at an exception. */
static const float *rising(Py_ssize_t samples) {
    static float *tables[MOST_SAMPLES + 1];
    if (tables[samples] == NULL) {
        float *table = malloc((samples + 1) * sizeof *table);
        if (table == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        for (Py_ssize_t i = 0; i < samples; i++) table[i] = (float)((i + 0.5) / (double)samples);
        tables[samples] = table;
    }
    return tables[samples];
}

static int16_t sample_at(const char *data, Py_ssize_t at) {
    return (int16_t)((uint8_t)data[2 * at] | (uint8_t)data[2 * at + 1] << 8);
}

static void put_sample(char *data, Py_ssize_t at, int16_t sample) {
    data[2 * at] = (char)(sample & 255);
    data[2 * at + 1] = (char)(sample >> 8 & 255);
}

static int is_silent(const char *data, Py_ssize_t size) {
    for (Py_ssize_t at = 0; at < size / 2; at++) {
        int16_t sample = sample_at(data, at);
        if (sample >= constants[SILENCE_PEAK] || sample <= -constants[SILENCE_PEAK]) return 0;
    }
    return 1;
}

/* What is still to be heard of a sound that stops after the latest frame: into `cut_off`. */
static int put_ending(playout *self) {
    Py_ssize_t samples = self->fade_samples, played = PyBytes_GET_SIZE(self->last);
    const float *weights = rising(samples);
    if (weights == NULL) return -1;
    char ending[2 * MOST_SAMPLES];
    float held = (float)sample_at(PyBytes_AS_STRING(self->last) + played - 2, 0);
    for (Py_ssize_t at = 0; at < samples; at++) put_sample(ending, at, (int16_t)(held * (1.0f - weights[at])));
    PyObject *made = PyBytes_FromStringAndSize(ending, is_silent(ending, 2 * samples) ? 0 : 2 * samples);
    if (made == NULL) return -1;
    put_object(&self->cut_off, made);
    return 0;
}

/* One frame that begins as `first` and ends as `second`. Takes over both references. */
static PyObject *merge(PyObject *first, PyObject *second) {
    Py_ssize_t size = PyBytes_GET_SIZE(first);
    const float *weights = rising(size / 2);
    PyObject *made = weights == NULL ? NULL : PyBytes_FromStringAndSize(NULL, size);
    if (made != NULL) {
        const char *one = PyBytes_AS_STRING(first), *other = PyBytes_AS_STRING(second);
        for (Py_ssize_t at = 0; at < size / 2; at++) {
            float going = (float)sample_at(one, at) * (1.0f - weights[at]), coming = (float)sample_at(other, at) * weights[at];
            put_sample(PyBytes_AS_STRING(made), at, (int16_t)(going + coming));
        }
    }
    Py_DECREF(first);
    Py_DECREF(second);
    return made;
}

/* The first frame after a tick that had nothing to play. Takes the reference over. */
static PyObject *resume(playout *self, PyObject *frame) {
    Py_ssize_t ending = PyBytes_GET_SIZE(self->cut_off) / 2, fade = 0;
    if (!ending && self->idle_ticks <= constants[UNDERRUN_GAP_TICKS]) fade = self->fade_samples;
    if (ending || fade) {
        const float *weights = rising(fade);
        PyObject *before = frame, *none = weights == NULL ? NULL : PyBytes_FromStringAndSize(NULL, 0);
        frame = none == NULL ? NULL : PyBytes_FromStringAndSize(PyBytes_AS_STRING(before), PyBytes_GET_SIZE(before));
        Py_DECREF(before);
        if (frame == NULL) {
            Py_XDECREF(none);
            return NULL;
        }
        char *data = PyBytes_AS_STRING(frame);
        for (Py_ssize_t at = 0; at < fade; at++) put_sample(data, at, (int16_t)((float)sample_at(data, at) * weights[at]));
        for (Py_ssize_t at = 0; at < ending; at++) {
            int both = sample_at(data, at) + sample_at(PyBytes_AS_STRING(self->cut_off), at);
            put_sample(data, at, (int16_t)(both < -0x8000 ? -0x8000 : both > 0x7FFF ? 0x7FFF : both));
        }
        put_object(&self->cut_off, none);
    }
    self->idle_ticks = 0;
    self->waited = 0;
    return frame;
}

/* The delay of a stall */

static void look_at_depth(playout *self, long long frames) {
    if (frames < self->window_min) self->window_min = frames;
    if (++self->window_ticks >= constants[WINDOW_TICKS]) {
        self->previous_min = self->window_min;
        self->window_min = frames;
        self->window_ticks = 0;
    }
}

void playout_note_stall(playout *self, long long frames) {
    long long standing = less(self->previous_min, self->window_min);
    if (!self->recovering) {
        if (standing > constants[LEAD_FRAMES]) return;
        self->baseline = standing;
        self->budget = 0;
    }
    self->budget = less(self->budget + less(frames, constants[MAX_STALL_FRAMES]), 3 * constants[MAX_STALL_FRAMES]);
    if (frames <= constants[HICCUP_FRAMES]) {
        if (self->recovering > constants[PATIENT_TICKS]) return; /* part of a longer one */
        self->recovering = constants[PATIENT_TICKS];
    } else {
        self->recovering = constants[PATIENT_TICKS] + constants[RECOVERY_TICKS];
    }
    self->settle = self->excess = self->since_cut = 0;
    self->pace = constants[RECOVERY_TICKS];
}

static int can_cut(playout *self) {
    return self->excess > 0 && self->budget > 0 && self->pushed - self->position >= self->frame_bytes;
}

/* The frame that is cut; NULL without an error: it could not be taken. */
static PyObject *cut(playout *self) {
    PyObject *frame = take(self);
    if (frame != NULL) {
        self->budget--;
        self->excess--;
        self->recovered_frames++;
    } else if (!PyErr_Occurred()) {
        PyErr_SetString(PyExc_ValueError, "what is queued to be played is not bytes");
    }
    return frame;
}

/* Playout._recover: what is played in the place of `frame`, whose reference it takes over. */
static PyObject *recover(playout *self, PyObject *frame, long long frames) {
    int patient = self->recovering <= constants[PATIENT_TICKS];
    self->settle_min = self->settle == 0 ? frames : less(self->settle_min, frames);
    self->settle++;
    self->since_cut++;
    if (self->settle >= constants[patient ? WINDOW_TICKS : SETTLE_TICKS]) {
        self->settle = 0;
        self->excess = self->settle_min - self->baseline - !patient;
        self->pace = more(2, less(self->pace, 70 / more(1, self->excess)));
        if (self->excess > self->budget + constants[LEAD_FRAMES]) self->recovering = self->excess = 0;
        if (patient) self->budget = less(self->budget, constants[HICCUP_FRAMES]);
    }
    if (self->excess <= 0 || self->budget <= 0) return frame;
    int merged = 0;
    while (can_cut(self) && is_silent(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))) {
        Py_DECREF(frame);
        frame = cut(self);
        if (frame == NULL) return NULL;
        merged = 1;
    }
    int waits = constants[IMPATIENT_TICKS] < self->recovering && self->recovering <= constants[PATIENT_TICKS];
    if (merged || waits || !can_cut(self) || self->since_cut < self->pace) return frame;
    self->since_cut = 0;
    PyObject *second = cut(self);
    if (second == NULL) {
        Py_DECREF(frame);
        return NULL;
    }
    return merge(frame, second);
}

/* A tick */

static int is_usual(playout *self) {
    return self->chunks != NULL && is_bytes(self->last) && is_bytes(self->cut_off) && self->frame_bytes > 0
        && !(self->frame_bytes & 1) && self->frame_bytes <= 2 * MOST_SAMPLES && 0 <= self->fade_samples
        && 2 * self->fade_samples <= self->frame_bytes && !(PyBytes_GET_SIZE(self->cut_off) & 1)
        && PyBytes_GET_SIZE(self->cut_off) <= self->frame_bytes && (self->idle_ticks || PyBytes_GET_SIZE(self->last) >= 2);
}

PyObject *playout_tick(playout *self) {
    long long size = self->frame_bytes, depth = self->pushed - self->position;
    if (is_usual(self) && 0 <= depth && depth < size && !(depth && self->waited)) {
        if (!self->idle_ticks && put_ending(self) < 0) return NULL;
        look_at_depth(self, 0);
        if (self->recovering) self->recovering--;
        self->waited = depth > 0;
        self->idle_ticks++;
        Py_RETURN_NONE;
    }
    PyObject *frame = depth >= size && is_usual(self) ? take(self) : NULL;
    if (frame == NULL) return PyErr_Occurred() ? NULL : refer_to(PLAYOUT_TICK, (PyObject *)self, NULL, NULL);
    look_at_depth(self, depth / size);
    self->frames_played++;
    if (self->recovering && --self->recovering) frame = recover(self, frame, depth / size);
    if (frame != NULL && self->idle_ticks) frame = resume(self, frame);
    if (frame != NULL) put_object(&self->last, Py_NewRef(frame));
    return frame;
}

static PyObject *push_audio(PyObject *self, PyObject *audio) {
    if (playout_push((playout *)self, audio) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *tick_playout(PyObject *self, PyObject *unused) {
    (void)unused;
    return playout_tick((playout *)self);
}

static PyObject *note_stall(PyObject *self, PyObject *argument) {
    long long frames = PyLong_AsLongLong(argument);
    if (frames == -1 && PyErr_Occurred()) return NULL;
    playout_note_stall((playout *)self, frames);
    Py_RETURN_NONE;
}

#define SELF playout
static PyMethodDef playout_methods[] = {
    {"push", push_audio, METH_O, NULL},
    {"tick", tick_playout, METH_NOARGS, NULL},
    {"note_stall", note_stall, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
TYPE(playout, PLAYOUT, "Playout")
#undef SELF
