<?php
// Lines until the client leaves, and then a word in a file.
register_shutdown_function(function () {
    file_put_contents($_GET['file'], connection_aborted() ? 'aborted' : 'ended');
});
while (ob_get_level()) ob_end_clean();
for ($n = 0; $n < 2000; $n++) {
    echo "line $n\n";
    flush();
    usleep(10000);
}
