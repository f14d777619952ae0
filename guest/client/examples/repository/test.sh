[ "$(sh sum.sh 2 3)" = 5 ] || { echo '2 and 3 are not 5'; exit 1; }
