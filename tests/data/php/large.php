<?php
// So many bytes, of lines that tell their place.
$size = (int) $_GET['size'];
if (isset($_GET['length'])) header("Content-Length: $size");
for ($at = 0; $at < $size; $at += 16) {
    echo substr(sprintf("%015d\n", $at), 0, min(16, $size - $at));
}
