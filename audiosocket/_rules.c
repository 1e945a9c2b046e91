/* Turns: see audiosocket/turns.py and loudness.py, which have the rules. */
#include "_frames.h"

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

static int are_bytes(PyObject *frames) {
    Py_ssize_t count = PyObject_Size(frames);
    for (Py_ssize_t at = 0; at < count; at++) {
        PyObject *frame = PySequence_GetItem(frames, at);
        int other = !is_bytes(frame);
        Py_XDECREF(frame);
        if (other) count = -1;
    }
    PyErr_Clear();
    return count >= 0;
}

/* Frames that have come with the latest one belong to the ticks before. */
static int hear_earlier(turns *self, long long now) {
    for (Py_ssize_t left; (left = PyObject_Size(self->earlier)) != 0;) {
        PyObject *frame = left < 0 ? NULL : take_first(self->earlier);
        int failed = frame == NULL ? -1 : hear(self, now - left, frame);
        Py_XDECREF(frame);
        if (failed < 0) return -1;
    }
    return 0;
}

int turns_hear_more(turns *self, PyObject *frame) {
    if (put_last(self->earlier, self->heard) < 0) return -1;
    put_object(&self->heard, Py_NewRef(frame));
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
        || (heard != Py_None && (!PyBytes_CheckExact(heard) || !are_bytes(self->earlier)))
        || (played != Py_None && !PyBytes_CheckExact(played)) || self->played_step < 1 || self->upper_step < 0) {
        PyObject *number = PyLong_FromLongLong(now);
        if (number == NULL) return -1;
        int failed = done(refer_to(TURNS_TICK, (PyObject *)self, number, played));
        Py_DECREF(number);
        return failed;
    }
    if (heard != Py_None) {
        self->heard = Py_NewRef(Py_None);
        int failed = hear_earlier(self, now);
        if (failed == 0) failed = hear(self, now, heard);
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
