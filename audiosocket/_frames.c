/* The module: the steps of a frame that audiosocket/frame_steps.py has in Python, each as one call, and the types that
 * carry a call's usual frames (_frames.h). Every function gives the very bytes that its Python twin gives
 * (tests/unit/test_frame_steps.py and test_compiled.py hold them to it). */
#include "_frames.h"

long long constants[CONSTANTS];
static const char *const CONSTANT_NAMES[CONSTANTS] = {
    "GAP_TICKS", "PAUSE_TICKS", "SILENCE_TICKS", "LOOK_TICKS", "AUDIBLE_SAMPLES", "SHARE", "NEVER", "LEVEL_COUNT",
    "WINDOW_TICKS", "UNDERRUN_GAP_TICKS", "PATIENT_TICKS", "IMPATIENT_TICKS", "SETTLE_TICKS", "SILENCE_PEAK", "STALL_TICKS",
    "LEAD_FRAMES", "RECOVERY_TICKS", "HICCUP_FRAMES", "MAX_STALL_FRAMES", "CATCH_UP_FRAMES", "STALE_FRAMES", "LATE_TICKS",
    "BLAMED_TICKS",
};
static PyObject *references[REFERENCES];
static const char *const REFERENCE_NAMES[REFERENCES] = {
    "MediaMessages.media", "Playout.push", "Playout.tick", "Playout.note_stall", "Turns.tick", "Session.caller_audio",
    "Session.caller_backlog", "Session.app_text", "Session.tick", "AudioSocketLeg.data_received", "AudioSocketLeg._tick",
    "Gate.data_received", "Gate.send",
};

PyObject *refer_to(enum reference which, PyObject *self, PyObject *one, PyObject *two) {
    PyObject *args[] = {self, one, two};
    if (references[which] == NULL)
        return PyErr_Format(PyExc_RuntimeError, "%s: nothing to refer to", REFERENCE_NAMES[which]);
    return PyObject_Vectorcall(references[which], args, one == NULL ? 1 : two == NULL ? 2 : 3, NULL);
}

static int find(PyObject *name, const char *const *names, int count) {
    for (int i = 0; i < count; i++)
        if (PyUnicode_CompareWithASCIIString(name, names[i]) == 0) return i;
    PyErr_Format(PyExc_LookupError, "%R is not known here", name);
    return -1;
}

static int want_bytes(PyObject *object) {
    if (PyBytes_Check(object)) return 1;
    PyErr_Format(PyExc_TypeError, "bytes expected, not %.80s", Py_TYPE(object)->tp_name);
    return 0;
}

static int want_count(Py_ssize_t given, Py_ssize_t wanted) {
    if (given == wanted) return 1;
    PyErr_Format(PyExc_TypeError, "%zd arguments expected, not %zd", wanted, given);
    return 0;
}

/* refer(name, function): the method in Python that the compiled one of that name stands in front of */
static PyObject *refer(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (!want_count(count, 2)) return NULL;
    int which = find(args[0], REFERENCE_NAMES, REFERENCES);
    if (which < 0) return NULL;
    Py_INCREF(args[1]);
    put_object(&references[which], args[1]);
    Py_RETURN_NONE;
}

/* constant(name, number): what the rules in Python name so */
static PyObject *constant(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (!want_count(count, 2)) return NULL;
    int which = find(args[0], CONSTANT_NAMES, CONSTANTS);
    if (which < 0) return NULL;
    long long number = PyLong_AsLongLong(args[1]);
    if (number == -1 && PyErr_Occurred()) return NULL;
    constants[which] = number;
    Py_RETURN_NONE;
}

PyObject *look_up_samples(PyObject *data, PyObject *table) {
    Py_ssize_t size = PyBytes_GET_SIZE(data);
    if (size > PY_SSIZE_T_MAX / 2) return PyErr_NoMemory();
    const uint8_t *in = (const uint8_t *)PyBytes_AS_STRING(data);
    const char *samples = PyBytes_AS_STRING(table);
    PyObject *made = PyBytes_FromStringAndSize(NULL, 2 * size);
    if (made == NULL) return NULL;
    char *out = PyBytes_AS_STRING(made);
    for (Py_ssize_t i = 0; i < size; i++) memcpy(out + 2 * i, samples + 2 * in[i], 2);
    return made;
}

/* look_up(data, table): for each byte of `data` the two bytes that stand for it in the 512 of `table` */
static PyObject *look_up(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (!want_count(count, 2) || !want_bytes(args[0]) || !want_bytes(args[1])) return NULL;
    if (PyBytes_GET_SIZE(args[1]) != 512) {
        PyErr_SetString(PyExc_ValueError, "a table of 256 samples has 512 bytes");
        return NULL;
    }
    return look_up_samples(args[0], args[1]);
}

/* media_message(parts, first, second, third, audio): the five parts with the numbers and the base64 between them */
static PyObject *media_message(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    Py_ssize_t parts;
    if (!want_count(count, 5) || !want_bytes(args[4]) || !check_parts(args[0], &parts)) return NULL;
    Py_ssize_t size = PyBytes_GET_SIZE(args[4]);
    if (size > PY_SSIZE_T_MAX / 4) return PyErr_NoMemory();
    unsigned long long numbers[3];
    for (int i = 0; i < 3; i++) {
        numbers[i] = PyLong_AsUnsignedLongLong(args[1 + i]);
        if (numbers[i] == (unsigned long long)-1 && PyErr_Occurred()) return NULL;
    }
    PyObject *made = PyBytes_FromStringAndSize(NULL, parts + 3 * 20 + (size + 2) / 3 * 4);
    if (made == NULL) return NULL;
    char *start = PyBytes_AS_STRING(made);
    char *end = put_message(start, args[0], numbers, (const uint8_t *)PyBytes_AS_STRING(args[4]), size);
    _PyBytes_Resize(&made, end - start);
    return made;
}

/* media_payload(message, stream_sid): the audio of a media message in the usual shape; None for all else */
static PyObject *media_payload(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (!want_count(count, 2) || !want_bytes(args[0]) || !want_bytes(args[1])) return NULL;
    PyObject *audio = 
        read_media_message((const uint8_t *)PyBytes_AS_STRING(args[0]), PyBytes_GET_SIZE(args[0]), args[1], NULL);
    if (audio != NULL || PyErr_Occurred()) return audio;
    Py_RETURN_NONE;
}

#define FAST(function) {#function, (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {
    FAST(look_up), FAST(media_message), FAST(media_payload), FAST(refer), FAST(constant), {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_frames", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__frames(void) {
    fill_tables();
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) return NULL;
    PyTypeObject *types[] = {
        &noise_floor_type, &turns_type, &playout_type, &media_messages_type, &session_type, &leg_type,
        &gate_type, &poll_type,
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (PyModule_AddType(module, types[i]) < 0) goto failed;
    if (PyModule_AddStringConstant(module, "SOURCE", SOURCE) < 0 || prepare_queues() < 0 || prepare_stream() < 0)
        goto failed;
    return module;
failed:
    Py_DECREF(module);
    return NULL;
}
