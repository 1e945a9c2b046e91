/* Turns and Playout: see audiosocket/turns.py, loudness.py and playout.py, which have the rules. */
#include "_frames.h"

static PyObject *deque_append, *deque_popleft; /* methods of collections.deque, which has no calls in C */

int prepare_rules(void) {
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

/* Drops the result of a call; -1 when it raised. */
/* Turns */

#define SELF noise_floor
static PyMethodDef noise_floor_methods[] = {{NULL, NULL, 0, NULL}};
TYPE(noise_floor, NOISE_FLOOR, "NoiseFloor")
#undef SELF

/* The bytes of a frame that are looked at: every `step`th from `first` on. */
typedef struct { const uint8_t *data; Py_ssize_t size, first, step; } look;

static Py_ssize_t samples_of(look at) { return at.size > at.first ? (at.size - at.first + at.step - 1) / at.step : 0; }

/* How many of them are over a level, which is the number of levels that a byte must exceed. */
static Py_ssize_t loud(look at, const uint8_t *reach, long long level) {
    Py_ssize_t count = 0;
    for (Py_ssize_t i = at.first; i < at.size; i += at.step) count += reach[at.data[i]] > level;
    return count;
}

/* The usual of NoiseFloor.dip: the frame is no quieter than the least so far. 0: it has to be called. */
static int no_dip(noise_floor *floor, look at, const uint8_t *reach, Py_ssize_t samples) {
    if (floor->least < 0) return 1;
    return floor->least < constants[LEVEL_COUNT] && loud(at, reach, floor->least) * constants[SHARE] >= samples;
}

static PyObject *looked_at(turns *self, PyObject *frame) { /* the same as bytes, for the methods in Python */
    return self->upper_step ? PyObject_GetItem(frame, self->upper_bytes) : Py_NewRef(frame);
}

static int dip(turns *self, PyObject *frame) {
    PyObject *seen = looked_at(self, frame);
    if (seen == NULL) return -1;
    int failed = done(PyObject_CallMethod(self->floor, "dip", "O", seen));
    Py_DECREF(seen);
    return failed;
}

static int look_for_steady(turns *self, long long now, PyObject *frame) {
    PyObject *seen = looked_at(self, frame);
    if (seen == NULL) return -1;
    PyObject *steady = PyObject_CallMethod(self->floor, "look", "LO", now, seen);
    Py_DECREF(seen);
    if (steady == NULL) return -1;
    if (steady == Py_True) self->steady = 1;
    Py_DECREF(steady);
    return 0;
}

static int pause_talk(turns *self) { return done(PyObject_CallMethod((PyObject *)self, "_pause", NULL)); }

static int hear(turns *self, long long now, PyObject *frame) {
    noise_floor *floor = (noise_floor *)self->floor;
    const uint8_t *reach = (const uint8_t *)PyBytes_AS_STRING(floor->reach);
    look at = {(const uint8_t *)PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), self->upper_step ? 1 : 0,
               self->upper_step ? self->upper_step : 1};
    Py_ssize_t samples = samples_of(at);
    if (samples == 0) return 0;
    if (loud(at, reach, self->speaking ? floor->off : floor->on) * constants[SHARE] >= samples) {
        if (!self->speaking) {
            if (done(PyObject_CallMethod((PyObject *)self, "_start", "Ln", now, samples)) < 0) return -1;
        } else if (now > self->caller_last) {
            long long last = self->caller_last;
            self->caller_last = now;
            self->caller_ticks += now - last;
            if (self->app_last > last
                && done(PyObject_CallMethod((PyObject *)self, "_overlap", "LLLL", last, now, self->app_start,
                                            self->app_last)) < 0)
                return -1;
        }
    } else if (self->speaking) {
        if (!no_dip(floor, at, reach, samples) && dip(self, frame) < 0) return -1;
        if (now - self->caller_last >= constants[PAUSE_TICKS] && pause_talk(self) < 0) return -1;
    } else {
        self->run = 0;
    }
    if (now % constants[LOOK_TICKS] == 0
        && (!floor->window_end || now >= floor->window_end || !no_dip(floor, at, reach, samples)))
        return look_for_steady(self, now, frame);
    return 0;
}

static int audible(turns *self, long long now) {
    long long last = self->app_last;
    if (now - last == 1 && self->uttering
        && (self->barge_in_start == constants[NEVER] || self->speaking)) { /* it just goes on */
        self->app_last = now;
        self->app_ticks++;
        if (self->caller_last > last) self->both_ticks++;
        return 0;
    }
    return done(PyObject_CallMethod((PyObject *)self, "_audible", "L", now));
}

static int played_tick(turns *self, long long now, PyObject *played) {
    if (played != Py_None) {
        const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(played);
        Py_ssize_t size = PyBytes_GET_SIZE(played), count = 0;
        for (Py_ssize_t i = 1; i < size; i += self->played_step) count += data[i] != 0 && data[i] != 255;
        if (count >= constants[AUDIBLE_SAMPLES]) return audible(self, now);
    }
    if (self->uttering) {
        long long quiet = now - self->app_last;
        if (quiet >= constants[PAUSE_TICKS] && (played == Py_None || quiet >= constants[SILENCE_TICKS]))
            return done(PyObject_CallMethod((PyObject *)self, "_hush", NULL));
    }
    return 0;
}

int turns_tick(turns *self, long long now, PyObject *played) {
    PyObject *heard = self->heard;
    if (heard == NULL || self->earlier == NULL || !is_a(self->floor, &noise_floor_type)
        || !is_bytes(((noise_floor *)self->floor)->reach) || PyBytes_GET_SIZE(((noise_floor *)self->floor)->reach) != 256
        || (heard != Py_None && (!PyBytes_CheckExact(heard) || PyObject_Size(self->earlier) != 0))
        || (played != Py_None && !PyBytes_CheckExact(played)) || self->played_step < 1 || self->upper_step < 0) {
        PyObject *number = PyLong_FromLongLong(now);
        if (number == NULL) return -1;
        int failed = done(refer_to(TURNS_TICK, (PyObject *)self, number, played));
        Py_DECREF(number);
        return failed;
    }
    if (heard != Py_None) {
        self->heard = Py_NewRef(Py_None);
        int failed = hear(self, now, heard);
        Py_DECREF(heard);
        if (failed < 0) return -1;
    } else if (self->speaking && now - self->caller_last >= constants[PAUSE_TICKS] && pause_talk(self) < 0) {
        return -1;
    }
    return played_tick(self, now, played);
}

static PyObject *tick_turns(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "2 arguments expected, not %zd", count);
    long long now = PyLong_AsLongLong(args[0]);
    if (now == -1 && PyErr_Occurred()) return NULL;
    if (turns_tick((turns *)self, now, args[1]) < 0) return NULL;
    Py_RETURN_NONE;
}

#define SELF turns
static PyMethodDef turns_methods[] = {
    {"tick", (PyCFunction)(void (*)(void))tick_turns, METH_FASTCALL, NULL}, {NULL, NULL, 0, NULL},
};
TYPE(turns, TURNS, "Turns")
#undef SELF

/* Playout */

int playout_push(playout *self, PyObject *audio) {
    Py_ssize_t size = is_bytes(audio) ? PyBytes_GET_SIZE(audio) : 0;
    long long depth = self->pushed - self->position + size;
    Py_ssize_t waiting = size && self->chunks != NULL ? PyObject_Size(self->chunks) : -1;
    PyErr_Clear();
    if (waiting < 0 || self->skip_byte || depth > self->max_bytes
        /* a crumb that may have to be put to another one, and an underrun that may have to be counted */
        || (size < self->frame_bytes && waiting)
        || (!waiting && self->idle_ticks && self->idle_ticks <= constants[UNDERRUN_GAP_TICKS] && self->frames_played))
        return done(refer_to(PLAYOUT_PUSH, (PyObject *)self, audio, NULL));
    PyObject *args[] = {self->chunks, audio};
    if (done(PyObject_Vectorcall(deque_append, args, 2, NULL)) < 0) return -1;
    self->pushed += size;
    if (depth > self->peak_bytes) self->peak_bytes = depth;
    return 0;
}

/* The frame at the head of the queue, when it lies in one piece there; NULL without an error: it does not. */
static PyObject *take(playout *self) {
    PyObject *chunk = PySequence_GetItem(self->chunks, 0);
    if (chunk == NULL || !PyBytes_CheckExact(chunk)) {
        PyErr_Clear();
        Py_XDECREF(chunk);
        return NULL;
    }
    long long left = PyBytes_GET_SIZE(chunk) - self->head, size = self->frame_bytes;
    PyObject *frame = NULL;
    if (self->head < 0 || left < size) {
        Py_DECREF(chunk);
        return NULL;
    }
    if (self->head == 0 && left == size) {
        frame = Py_NewRef(chunk);
    } else {
        frame = PyBytes_FromStringAndSize(PyBytes_AS_STRING(chunk) + self->head, size);
    }
    Py_DECREF(chunk);
    if (frame == NULL) return NULL;
    if (left > size) {
        self->head += size;
    } else {
        if (done(PyObject_Vectorcall(deque_popleft, &self->chunks, 1, NULL)) < 0) {
            Py_DECREF(frame);
            return NULL;
        }
        self->head = 0;
    }
    return frame;
}

static void look_at_depth(playout *self, long long frames) {
    if (frames < self->window_min) self->window_min = frames;
    if (++self->window_ticks >= constants[WINDOW_TICKS]) {
        self->previous_min = self->window_min;
        self->window_min = frames;
        self->window_ticks = 0;
    }
}

static int is_silent(PyObject *frame) {
    const uint8_t *at = (const uint8_t *)PyBytes_AS_STRING(frame), *end = at + (PyBytes_GET_SIZE(frame) & ~1);
    for (; at < end; at += 2) {
        int16_t sample = (int16_t)(at[0] | at[1] << 8);
        if (sample >= constants[SILENCE_PEAK] || sample <= -constants[SILENCE_PEAK]) return 0;
    }
    return 1;
}

/* Whether Playout._recover would leave the frame as it is: nothing stands too deep, or it is speech that waits. */
static int is_left(playout *self, PyObject *frame) {
    if (self->excess <= 0 || self->budget <= 0) return 1;
    int waits = constants[IMPATIENT_TICKS] < self->recovering && self->recovering <= constants[PATIENT_TICKS];
    return is_bytes(frame) && (waits || self->since_cut + 1 < self->pace) && !is_silent(frame);
}

/* The frame while what stands too deep after a stall is worked off. The usual of Playout._recover: it stays as it is.
 * Takes the reference over. */
static PyObject *recover(playout *self, PyObject *frame, long long frames) {
    long long after = constants[self->recovering <= constants[PATIENT_TICKS] ? WINDOW_TICKS : SETTLE_TICKS];
    if (self->settle + 1 < after && is_left(self, frame)) {
        if (self->settle == 0 || frames < self->settle_min) self->settle_min = frames;
        self->settle++;
        self->since_cut++;
        return frame;
    }
    PyObject *left = PyObject_CallMethod((PyObject *)self, "_recover", "OL", frame, frames);
    Py_DECREF(frame);
    return left;
}

PyObject *playout_tick(playout *self) {
    long long size = self->frame_bytes, depth = self->pushed - self->position;
    if (size > 0 && self->chunks != NULL) {
        if (depth == 0 && self->idle_ticks) {
            look_at_depth(self, 0);
            if (self->recovering) self->recovering--;
            self->waited = 0;
            self->idle_ticks++;
            Py_RETURN_NONE;
        }
        if (depth >= size && !self->idle_ticks) {
            PyObject *frame = take(self);
            if (frame != NULL) {
                look_at_depth(self, depth / size);
                self->frames_played++;
                self->position += size;
                if (self->recovering && --self->recovering) {
                    frame = recover(self, frame, depth / size);
                    if (frame == NULL) return NULL;
                }
                put_object(&self->last, Py_NewRef(frame));
                return frame;
            }
            if (PyErr_Occurred()) return NULL;
        }
    }
    return refer_to(PLAYOUT_TICK, (PyObject *)self, NULL, NULL);
}

static PyObject *push_audio(PyObject *self, PyObject *audio) {
    if (playout_push((playout *)self, audio) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *tick_playout(PyObject *self, PyObject *unused) {
    (void)unused;
    return playout_tick((playout *)self);
}

#define SELF playout
static PyMethodDef playout_methods[] = {
    {"push", push_audio, METH_O, NULL}, {"tick", tick_playout, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL},
};
TYPE(playout, PLAYOUT, "Playout")
#undef SELF
