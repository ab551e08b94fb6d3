/*
 * The JSON of --json (vm/report.h): the longest report fits, and text of any bytes stays text.
 * functional/test_native_report.py compares its fields with Python's. One TAP line for each check.
 */
#include <limits.h>
#include <string.h>

#include "holds.h"
#include "report.h"

static char line[REPORT_BYTES + 1];

/* Returns the line for an image of this name. */
static const char *report_of(const char *image)
{
    const struct vm_event event = {.kind = EVENT_HALT};
    static const struct vm_shared shared;
    const struct told_exit told = {.reason = "exit"};
    const struct report_about about = {.image = image, .backend = "kvm"};
    memset(line, '#', sizeof line);
    line[report_write(line, &about, &told, &event, &shared)] = '\0';
    return line;
}

static bool is_written_as(const char *image, const char *text)
{
    char begin[256];
    (void)snprintf(begin, sizeof begin, "{\"schema\": 1, \"image\": \"%s\", \"signal\": null, ", text);
    const char *told = report_of(image);
    const bool holds = strncmp(told, begin, strlen(begin)) == 0;
    if (!holds)
        printf("# %.100s\n# %s\n", told, begin);
    return holds;
}

static void test_text_of_any_bytes(void)
{
    HOLDS(is_written_as("", ""));
    HOLDS(is_written_as("a b~", "a b~"));
    HOLDS(is_written_as("\"\\/", "\\u0022\\u005c/"));
    HOLDS(is_written_as("\x01\n\x1f\x7f", "\\u0001\\u000a\\u001f\\u007f"));
    HOLDS(is_written_as("\xc3\xa9\xdf\xbf", "\\u00e9\\u07ff"));
    HOLDS(is_written_as("\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf", "\\u0800\\ud7ff\\ue000\\uffff"));
    HOLDS(is_written_as("\xf0\x90\x80\x80\xf4\x8f\xbf\xbf", "\\ud800\\udc00\\udbff\\udfff"));
}

static void test_a_byte_that_is_no_utf_8(void)
{
    HOLDS(is_written_as("\x80", "\\\\x80"));
    HOLDS(is_written_as("\xff", "\\\\xff"));
    HOLDS(is_written_as("\xc3", "\\\\xc3")); /* incomplete */
    HOLDS(is_written_as("\xc3z", "\\\\xc3z"));
    HOLDS(is_written_as("\xf0\x90\x80", "\\\\xf0\\\\x90\\\\x80"));
    HOLDS(is_written_as("\xc0\xaf", "\\\\xc0\\\\xaf")); /* longer than necessary */
    HOLDS(is_written_as("\xe0\x9f\xbf", "\\\\xe0\\\\x9f\\\\xbf"));
    HOLDS(is_written_as("\xf0\x8f\xbf\xbf", "\\\\xf0\\\\x8f\\\\xbf\\\\xbf"));
    HOLDS(is_written_as("\xed\xa0\x80", "\\\\xed\\\\xa0\\\\x80"));            /* half of a surrogate pair */
    HOLDS(is_written_as("\xf4\x90\x80\x80", "\\\\xf4\\\\x90\\\\x80\\\\x80")); /* past the last code point */
    HOLDS(is_written_as("\xf5\x80\x80\x80", "\\\\xf5\\\\x80\\\\x80\\\\x80"));
}

static bool is_whole(size_t length)
{
    return length < REPORT_BYTES && strlen(line) == length && line[length - 1] == '\n' &&
           line[length - 2] == '}';
}

static void test_the_longest_fits(void)
{
    static char image[PATH_MAX];
    static struct vm_shared shared;
    struct vm_event event = {
        .kind = EVENT_HALT, .status = INT32_MIN, .cookie_valid = 1, .registers_valid = 1};
    struct told_exit told = {.reason = "unsupported-instruction", .status = INT32_MIN, .hint = image};
    const struct report_about about = {.image = image,
                                       .signal = INT32_MIN,
                                       .backend = "sandbox",
                                       .isolation = UINT32_MAX,
                                       .vm_created_ns = 1};
    memset(image, 1, sizeof image - 1);
    memset(told.message, 1, sizeof told.message - 1);
    memset(&shared, 0xff, sizeof shared);
    memset(&event.trap, 0xff, sizeof event.trap);
    memset(&event.registers, 0xff, sizeof event.registers);
    event.rip = UINT64_MAX;
    event.instruction_bytes = sizeof event.instruction;
    memset(line, 0, sizeof line);
    HOLDS(is_whole(report_write(line, &about, &told, &event, &shared)));
    image[1000] = '\0'; /* a hint is one of the program's own texts */
    told.error = "TenderError";
    told.code = "isolation-missing";
    told.os_error = INT32_MAX;
    memset(line, 0, sizeof line);
    HOLDS(is_whole(report_write(line, &about, &told, NULL, NULL)));
}

int main(void)
{
    test_text_of_any_bytes();
    test_a_byte_that_is_no_utf_8();
    test_the_longest_fits();
    return claims_end();
}
