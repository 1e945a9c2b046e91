/* The steps of a frame that audiosocket/frame_steps.py has in Python, each as one call. Every function gives the very
 * bytes that its Python twin gives (tests/unit/test_frame_steps.py holds them to it); none keeps any state. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static char pairs[4096][2];    /* twelve bits as two characters of base64 */
static uint8_t sixes[256];     /* a character of base64 as six bits; 255: none of its alphabet */

static void fill_tables(void) {
    memset(sixes, 255, sizeof sixes);
    for (int i = 0; i < 64; i++) sixes[(uint8_t)ALPHABET[i]] = (uint8_t)i;
    for (int i = 0; i < 4096; i++) {
        pairs[i][0] = ALPHABET[i >> 6];
        pairs[i][1] = ALPHABET[i & 63];
    }
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

/* look_up(data, table): for each byte of `data` the two bytes that stand for it in the 512 of `table` */
static PyObject *look_up(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    if (!want_count(count, 2) || !want_bytes(args[0]) || !want_bytes(args[1])) return NULL;
    if (PyBytes_GET_SIZE(args[1]) != 512) {
        PyErr_SetString(PyExc_ValueError, "a table of 256 samples has 512 bytes");
        return NULL;
    }
    Py_ssize_t size = PyBytes_GET_SIZE(args[0]);
    if (size > PY_SSIZE_T_MAX / 2) return PyErr_NoMemory();
    const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(args[0]);
    const char *table = PyBytes_AS_STRING(args[1]);
    PyObject *made = PyBytes_FromStringAndSize(NULL, 2 * size);
    if (made == NULL) return NULL;
    char *out = PyBytes_AS_STRING(made);
    for (Py_ssize_t i = 0; i < size; i++) memcpy(out + 2 * i, table + 2 * data[i], 2);
    return made;
}

static char *put_base64(char *out, const uint8_t *data, Py_ssize_t size) {
    Py_ssize_t at = 0;
    for (; size - at >= 3; at += 3, out += 4) {
        memcpy(out, pairs[data[at] << 4 | data[at + 1] >> 4], 2);
        memcpy(out + 2, pairs[(data[at + 1] & 15) << 8 | data[at + 2]], 2);
    }
    if (at < size) {
        int second = size - at == 2 ? data[at + 1] : 0;
        memcpy(out, pairs[data[at] << 4 | second >> 4], 2);
        out[2] = size - at == 2 ? ALPHABET[(second & 15) << 2] : '=';
        out[3] = '=';
        out += 4;
    }
    return out;
}

static char *put_number(char *out, unsigned long long number) {
    char digits[20];
    int left = 20;
    do digits[--left] = (char)('0' + number % 10); while (number /= 10);
    memcpy(out, digits + left, 20 - left);
    return out + 20 - left;
}

static char *put_bytes(char *out, PyObject *bytes) {
    memcpy(out, PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes));
    return out + PyBytes_GET_SIZE(bytes);
}

/* media_message(parts, first, second, third, audio): the five parts with the numbers and the base64 between them */
static PyObject *media_message(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    if (!want_count(count, 5) || !want_bytes(args[4])) return NULL;
    PyObject *parts = args[0];
    if (!PyTuple_Check(parts) || PyTuple_GET_SIZE(parts) != 5) {
        PyErr_SetString(PyExc_TypeError, "a tuple of five parts expected");
        return NULL;
    }
    Py_ssize_t size = PyBytes_GET_SIZE(args[4]);
    if (size > PY_SSIZE_T_MAX / 4) return PyErr_NoMemory();
    Py_ssize_t room = (size + 2) / 3 * 4 + 3 * 20;
    for (int i = 0; i < 5; i++) {
        PyObject *part = PyTuple_GET_ITEM(parts, i);
        if (!want_bytes(part)) return NULL;
        if (PyBytes_GET_SIZE(part) > PY_SSIZE_T_MAX / 2 - room) return PyErr_NoMemory();
        room += PyBytes_GET_SIZE(part);
    }
    char numbers[3 * 20], *ends[4] = {numbers};
    for (int i = 0; i < 3; i++) {
        unsigned long long number = PyLong_AsUnsignedLongLong(args[1 + i]);
        if (number == (unsigned long long)-1 && PyErr_Occurred()) return NULL;
        ends[i + 1] = put_number(ends[i], number);
    }
    room -= numbers + sizeof numbers - ends[3];
    PyObject *made = PyBytes_FromStringAndSize(NULL, room);
    if (made == NULL) return NULL;
    char *out = PyBytes_AS_STRING(made);
    for (int i = 0; i < 3; i++) {
        out = put_bytes(out, PyTuple_GET_ITEM(parts, i));
        memcpy(out, ends[i], ends[i + 1] - ends[i]);
        out += ends[i + 1] - ends[i];
    }
    out = put_bytes(out, PyTuple_GET_ITEM(parts, 3));
    out = put_base64(out, (const uint8_t *)PyBytes_AS_STRING(args[4]), size);
    put_bytes(out, PyTuple_GET_ITEM(parts, 4));
    return made;
}

/* What is left of a message. Each reader moves on behind what it has read, or gives 0 at anything unusual. */
typedef struct { const uint8_t *at, *end; } text;
typedef struct { const uint8_t *start; Py_ssize_t size; } piece;

static void skip_spaces(text *t) { while (t->at < t->end && *t->at == ' ') t->at++; }

static int read_char(text *t, char wanted) {
    skip_spaces(t);
    if (t->at == t->end || *t->at != (uint8_t)wanted) return 0;
    t->at++;
    return 1;
}

/* A string of printable ASCII without escapes: what stands between the quotes. */
static int read_string(text *t, piece *found) {
    if (!read_char(t, '"')) return 0;
    const uint8_t *quote = memchr(t->at, '"', t->end - t->at);
    if (quote == NULL) return 0;
    found->start = t->at;
    found->size = quote - t->at;
    t->at = quote + 1;
    return 1;
}

static int plain(piece found) {
    for (Py_ssize_t i = 0; i < found.size; i++)
        if (found.start[i] < 0x20 || found.start[i] > 0x7e || found.start[i] == '\\') return 0;
    return 1;
}

static int is(piece found, const char *word) {
    return found.size == (Py_ssize_t)strlen(word) && memcmp(found.start, word, found.size) == 0;
}

static int read_number(text *t) {
    skip_spaces(t);
    const uint8_t *start = t->at;
    while (t->at < t->end && *t->at >= '0' && *t->at <= '9') t->at++;
    return t->at > start && t->at - start < 16 && (*start != '0' || t->at - start == 1);
}

/* A value that says nothing: a plain string or a number. */
static int read_other(text *t) {
    piece found;
    skip_spaces(t);
    if (t->at < t->end && *t->at == '"') return read_string(t, &found) && plain(found);
    return read_number(t);
}

/* The object behind "media": its one payload, and other members that say nothing. */
static int read_media(text *t, piece *payload) {
    if (!read_char(t, '{')) return 0;
    int seen = 0;
    do {
        piece key;
        if (!read_string(t, &key) || !read_char(t, ':')) return 0;
        if (is(key, "payload")) {
            if (seen++ || !read_string(t, payload)) return 0;
        } else if (!plain(key) || !read_other(t)) return 0;
    } while (read_char(t, ','));
    return seen && read_char(t, '}');
}

static int known(piece key) {
    return is(key, "mark") || is(key, "dtmf") || is(key, "event") || is(key, "media") || is(key, "stream_sid")
        || is(key, "streamSid");
}

static int read_message(text *t, piece sid, piece *payload) {
    if (!read_char(t, '{')) return 0;
    int event = 0, media = 0, sids = 0;
    do {
        piece key, value;
        if (!read_string(t, &key) || !read_char(t, ':')) return 0;
        if (is(key, "event")) {
            if (event++ || !read_string(t, &value) || !is(value, "media")) return 0;
        } else if (is(key, "media")) {
            if (media++ || !read_media(t, payload)) return 0;
        } else if (is(key, "stream_sid") || is(key, "streamSid")) {
            if (sids++ || !read_string(t, &value) || !plain(value)) return 0;
            if (value.size != sid.size || memcmp(value.start, sid.start, sid.size) != 0) return 0;
        } else if (known(key) || !plain(key) || !read_other(t)) return 0;
    } while (read_char(t, ','));
    return event && media && read_char(t, '}') && t->at == t->end;
}

static PyObject *from_base64(piece text) {
    const uint8_t *in = text.start;
    Py_ssize_t size = text.size;
    if (size == 0 || size % 4) return NULL;
    int padding = in[size - 1] == '=' ? 1 + (in[size - 2] == '=') : 0;
    PyObject *made = PyBytes_FromStringAndSize(NULL, size / 4 * 3 - padding);
    if (made == NULL) return NULL;
    uint8_t *out = (uint8_t *)PyBytes_AS_STRING(made), bad = 0;
    for (Py_ssize_t whole = (size - (padding ? 4 : 0)) / 4; whole; whole--, in += 4, out += 3) {
        uint8_t a = sixes[in[0]], b = sixes[in[1]], c = sixes[in[2]], d = sixes[in[3]];
        bad |= a | b | c | d;
        out[0] = (uint8_t)(a << 2 | b >> 4);
        out[1] = (uint8_t)(b << 4 | c >> 2);
        out[2] = (uint8_t)(c << 6 | d);
    }
    if (padding) {
        uint8_t a = sixes[in[0]], b = sixes[in[1]], c = padding == 1 ? sixes[in[2]] : 0;
        bad |= a | b | c;
        /* Bits behind the last byte that are not 0: how they are taken is left to the full decoder. */
        if (padding == 1 ? c & 3 : b & 15) bad = 255;
        out[0] = (uint8_t)(a << 2 | b >> 4);
        if (padding == 1) out[1] = (uint8_t)(b << 4 | c >> 2);
    }
    if (bad & 0xC0) Py_CLEAR(made);
    return made;
}

/* media_payload(message, stream_sid): the audio of a media message in the usual shape; None for all else */
static PyObject *media_payload(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    if (!want_count(count, 2) || !want_bytes(args[0]) || !want_bytes(args[1])) return NULL;
    const uint8_t *start = (const uint8_t *)PyBytes_AS_STRING(args[0]);
    text t = {start, start + PyBytes_GET_SIZE(args[0])};
    piece sid = {(const uint8_t *)PyBytes_AS_STRING(args[1]), PyBytes_GET_SIZE(args[1])}, payload = {start, 0};
    if (read_message(&t, sid, &payload)) {
        PyObject *audio = from_base64(payload);
        if (audio != NULL || PyErr_Occurred()) return audio;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"look_up", (PyCFunction)(void (*)(void))look_up, METH_FASTCALL, NULL},
    {"media_message", (PyCFunction)(void (*)(void))media_message, METH_FASTCALL, NULL},
    {"media_payload", (PyCFunction)(void (*)(void))media_payload, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_frames", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__frames(void) {
    fill_tables();
    return PyModule_Create(&definition);
}
